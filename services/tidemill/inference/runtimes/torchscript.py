"""TorchScript models in PyTorch."""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Self

import torch

from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration
from tidemill.inference.runtimes import _torch
from tidemill.inference.runtimes._torch import ERRORS, Options, TorchRuntime
from tidemill.inference.runtimes._torchtraced import traced_signature
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.signatures import Signature

_filters = threading.Lock()  # filters of warnings belong to the whole process


class TorchscriptRuntime(TorchRuntime):
    """One TorchScript model.

    Its configuration lists inputs and outputs, as a file knows neither types nor shapes; unless the model was traced,
    and so has those of the trace.

    A configured input is an argument of `forward` by its name; or by the number at the end of its name (`INPUT__0`); or
    by its place. It is a key where `forward` takes one dictionary. Outputs are keys of the dictionary that `forward`
    gives, or else go by their number or their place.
    """

    platform = "pytorch_libtorch"

    def __init__(self, modules: Sequence[Any], signature: Signature, binding: "_Binding", options: Options) -> None:
        state = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        super().__init__(signature, options, state)
        self._modules = list(modules)
        self._binding = binding

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """`model.pt`, or else the only file with that ending. Raises Invalid."""
        return _torch.select_file(paths, "model.pt")

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """The model in the one file.

        Raises:
            Invalid: it is broken, or not from a trusted source; or neither the file nor the configuration says what it
                takes and gives, or the configuration says something else.
        """
        _torch.check_trusted(settings)
        (data,) = files.values()
        _torch.check_archive(data)
        options = Options.of(settings)
        try:
            modules = [_load(data, device) for device in options.devices]
            schema = modules[0].forward.schema
        except ERRORS as error:
            raise _torch.refused(error) from error
        signature = _declared(settings.configuration) or _traced(data, modules[0])
        if signature is None:
            raise Invalid(
                "the file does not say what the model takes and gives, as only traced ones do: the configuration must "
                f"list inputs and outputs with data_type and dims; forward is {_shown(schema)}",
                reason="SIGNATURE_MISSING",
            )
        try:
            binding = _Binding(schema, signature)
        except ValueError as error:
            raise Invalid(
                f"the configuration does not fit the model, whose forward is {_shown(schema)}: {error}",
                reason="MODEL_REFUSED",
            ) from error
        return cls(modules, signature, binding, options)

    def _call(self, copy: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
        return self._binding.outputs(self._modules[copy](**self._binding.arguments(tensors)))

    def close(self) -> None:
        """Free the model."""
        self._modules.clear()


class _Binding:
    """Which argument of `forward` each input is, and which part of its result each output.

    Raises:
        ValueError: they do not fit.
    """

    def __init__(self, schema: Any, signature: Signature) -> None:
        self._dictionary = ""
        self._arguments: dict[str, str] = {}
        self._places: dict[str, int] | None = None
        self._names = signature.output_names
        self._bind_inputs(schema.arguments[1:], [spec.name for spec in signature.inputs])
        self._bind_outputs([result.type for result in schema.returns])

    def arguments(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What `forward` is called with."""
        if self._dictionary:
            return {self._dictionary: dict(tensors)}
        return {self._arguments[name]: tensor for name, tensor in tensors.items()}

    def outputs(self, found: Any) -> Mapping[str, object]:
        """Outputs by name, of what `forward` gave; those that are not there are left out."""
        if self._places is None:
            return found if isinstance(found, Mapping) else {}
        parts = (found,) if isinstance(found, torch.Tensor) else tuple(found)
        return {name: parts[place] for name, place in self._places.items() if place < len(parts)}

    def _bind_inputs(self, arguments: Sequence[Any], names: Sequence[str]) -> None:
        if len(arguments) == 1 and _is(arguments[0].type, "Dict[str, Tensor]"):
            self._dictionary = arguments[0].name
            return
        own = [argument.name for argument in arguments]
        self._arguments = {name: own[place] for name, place in zip(names, _torch.places(names, own), strict=True)}
        bound = set(self._arguments.values())
        for argument in arguments:
            if argument.name in bound:
                if not _is(argument.type, "Tensor", "Optional[Tensor]"):
                    raise ValueError(f"argument {argument.name!r} is no tensor but {argument.type}")
            elif not argument.has_default_value():
                raise ValueError(f"no input is configured for the argument {argument.name!r}")

    def _bind_outputs(self, results: Sequence[Any]) -> None:
        if len(results) != 1:
            raise ValueError(f"forward gives {len(results)} results")
        kind = results[0]
        if _is(kind, "Dict[str, Tensor]"):
            return
        if _is(kind, "List[Tensor]"):
            numbers = _torch.numbered(self._names)
            chosen = list(range(len(self._names))) if numbers is None else numbers
        else:
            parts = kind.elements() if kind.kind() == "TupleType" else [kind]
            if any(not _is(part, "Tensor", "Optional[Tensor]") for part in parts):
                raise ValueError(f"forward gives {kind}, which is neither tensors nor a dictionary of them")
            chosen = _torch.places(self._names, [f"OUTPUT__{place}" for place in range(len(parts))])
        self._places = dict(zip(self._names, chosen, strict=True))


def _declared(configuration: Configuration | None) -> Signature | None:
    """What the configuration lists; None for one that does not list both inputs and outputs."""
    if configuration is None or not configuration.inputs or not configuration.outputs:
        return None
    return Signature(
        tuple(_torch.spec_of(tensor, configuration) for tensor in configuration.inputs),
        tuple(_torch.spec_of(tensor, configuration) for tensor in configuration.outputs),
    )


def _traced(data: bytes, module: Any) -> Signature | None:
    """Raises Invalid."""
    try:
        with _quiet():
            return traced_signature(data, module)
    except ERRORS as error:
        raise _torch.refused(error) from error


def _is(kind: Any, *names: str) -> bool:
    return str(kind) in names


def _load(data: bytes, device: torch.device) -> Any:
    with _quiet():
        module = torch.jit.load(BytesIO(data), map_location=device)  # type: ignore[no-untyped-call]
    module.eval()
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns of TorchScript's age whenever it is used."""
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        yield


def _shown(schema: Any) -> str:
    """`(x: Tensor, mask: Optional[Tensor]) -> Tensor`, cut to what fits in a message."""
    arguments = ", ".join(f"{argument.name}: {argument.type}" for argument in schema.arguments[1:])
    results = ", ".join(str(result.type) for result in schema.returns)
    return f"({arguments}) -> {results}"[:400]
