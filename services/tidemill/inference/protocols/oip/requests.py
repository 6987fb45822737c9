"""Requests to infer, as calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Exhausted, Invalid
from tidemill.inference.calls import Array, Call
from tidemill.inference.configuration import Configuration
from tidemill.inference.inputs import InputTensor, Source, bind, check_count, rows_of, shown, wanted
from tidemill.inference.protocols.oip import contents, memory, parameters
from tidemill.inference.sharedmemory.regions import Regions

_CLASSIFICATION = "classification"
MAX_ID = 1024
"""Longest id of a request in characters: it comes back with each answer."""


@dataclass(slots=True, eq=False)
class Form:
    """What the caller wants of the answer beside its values.

    Args:
        id: the request's name, given back.
        typed: whether the elements of the request were typed.
        empty_final: whether the end is told also when there is nothing else to say.
        classes: for each output that is classified, how many classes.
        places: for each output that goes into shared memory, where.
    """

    id: str = ""
    typed: bool = False
    empty_final: bool = False
    classes: Mapping[str, int] = field(default_factory=dict)
    places: dict[str, memory.Place] = field(default_factory=dict)

    def release(self) -> None:
        """Let go of shared memory. Nothing is written any more."""
        while self.places:
            self.places.popitem()[1].release()


class Reader:
    """Makes calls of requests.

    Args:
        regions: of shared memory; None = there is none.
        largest: most bytes of tensors of a request in shared memory.
    """

    def __init__(self, regions: Regions | None, largest: int) -> None:
        self._regions = regions
        self._largest = largest

    def call(
        self,
        request: pb.ModelInferRequest,
        configuration: Configuration,
        *,
        expires: float | None,
        alive: Callable[[], bool],
    ) -> tuple[Call, Form]:
        """The call, and what its answer shall look like; `Form.release` must be called when that is made.

        Raises:
            Invalid: the request contradicts the protocol or the model.
            NotFound: a region of shared memory is not registered.
            Exhausted: it is too large.
            Unimplemented: there is no shared memory here.
        """
        model = request.model_name
        if len(request.id) > MAX_ID:
            raise Invalid(f"id: must have at most {MAX_ID} characters", reason="ID_TOO_LONG")
        options = parameters.options(request.parameters)
        inputs = self._inputs(request, configuration)
        typed = not request.raw_input_contents and any(tensor.HasField("contents") for tensor in request.inputs)
        form = Form(request.id, typed, options.empty_final)
        call = Call(
            inputs=inputs,
            outputs=wanted([output.name for output in request.outputs], configuration.signature, model),
            rows=rows_of(inputs, configuration.max_batch, model),
            id=request.id,
            correlation=options.correlation,
            starts=options.starts,
            ends=options.ends,
            priority=options.priority,
            patience=options.patience,
            expires=expires,
            alive=alive,
            parameters=options.others,
        )
        if request.outputs:
            self._outputs(request, form)
        return call, form

    def _inputs(self, request: pb.ModelInferRequest, configuration: Configuration) -> dict[str, Array]:
        model = request.model_name
        check_count(len(request.inputs), "input")
        places: list[memory.Place] = []
        try:
            tensors = self._tensors(request, places)
            if sum(map(len, places)) > self._largest:
                raise Exhausted(
                    f"a request may have at most {self._largest} bytes in shared memory", reason="REQUEST_TOO_LARGE"
                )
            return bind(tensors, configuration.signature, model, configuration.required)
        finally:
            for place in places:
                place.release()

    def _tensors(self, request: pb.ModelInferRequest, places: list[memory.Place]) -> list[InputTensor]:
        model, raw = request.model_name, request.raw_input_contents
        here = len(raw)
        tensors = []
        used = 0
        for tensor in request.inputs:
            data: bytes | Array | Source
            if tensor.parameters and memory.REGION in tensor.parameters:
                if tensor.HasField("contents"):
                    raise Invalid(
                        f"contents field must not be specified when using shared memory for '{shown(tensor.name)}' "
                        f"for model '{shown(model)}'",
                        reason="MEMORY_AND_TYPED",
                    )
                data = memory.place(tensor.parameters, self._regions, tensor.name)
                places.append(data)
            elif not here:
                data = contents.elements(tensor, model)
            elif tensor.HasField("contents"):
                raise Invalid(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{shown(tensor.name)}' for model '{shown(model)}'",
                    reason="RAW_AND_TYPED",
                )
            else:
                data = raw[used] if used < here else b""
                used += 1
            tensors.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
        if here and used != here:
            each = "each input that is not in shared memory" if places else "each input"
            raise Invalid(
                f"expected {used} entries in raw_input_contents for model '{shown(model)}', one for {each}, got {here}",
                reason="RAW_COUNT",
            )
        return tensors

    def _outputs(self, request: pb.ModelInferRequest, form: Form) -> None:
        classes: dict[str, int] = {}
        try:
            for output in request.outputs:
                if not output.parameters:
                    continue
                if _CLASSIFICATION in output.parameters:
                    count = parameters.number(output.parameters, _CLASSIFICATION) or 0
                    if not count:
                        raise Invalid(
                            f"'{_CLASSIFICATION}' parameter must be at least 1 for output '{output.name}'",
                            reason="WRONG_PARAMETER",
                        )
                    classes[output.name] = count
                if memory.REGION in output.parameters:
                    form.places[output.name] = memory.place(output.parameters, self._regions, output.name)
        except BaseException:
            form.release()
            raise
        form.classes = classes
