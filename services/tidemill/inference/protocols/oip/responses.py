"""Answers to requests, as messages."""

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.calls import Answer, Array
from tidemill.inference.classification import classify
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip import contents, memory, parameters
from tidemill.inference.protocols.oip.requests import Form
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType


class Writer:
    """Makes messages of answers.

    Args:
        mirror: whether typed requests get typed answers; else all are raw, as most clients look at nothing else.
    """

    def __init__(self, mirror: bool) -> None:
        self._mirror = mirror

    def response(self, loaded: Loaded, form: Form, answer: Answer) -> pb.ModelInferResponse:
        """The answer as its caller wants it; what belongs into shared memory is written there.

        Raises:
            Invalid: an output cannot be classified, or does not fit into its place.
        """
        response = pb.ModelInferResponse(model_name=loaded.version.model, model_version=loaded.label, id=form.id)
        if answer.parameters:
            parameters.put(response, answer.parameters)
        specs = loaded.signature.output
        tensors = []
        for name, array in answer.outputs.items():
            kind = specs[name].datatype
            if name in form.classes:
                configuration = loaded.configuration
                count, labels = form.classes[name], configuration.labels(name)
                array = classify(array, count, labels, bool(configuration.max_batch), name)
                kind = DataType.BYTES
            tensors.append((name, kind, array))
        typed = self._mirror and form.typed and all(contents.typed(kind) for _, kind, _ in tensors)
        for name, kind, array in tensors:
            tensor = response.outputs.add(name=name, datatype=kind.name, shape=array.shape)
            if name in form.places:
                _share(tensor, form.places[name], array, kind)
                # Clients count an entry for every output, wherever it lies.
                if not typed:
                    response.raw_output_contents.append(b"")
            elif typed:
                contents.put(tensor.contents, array, kind)
            else:
                response.raw_output_contents.append(codec.encode(array, kind))
        return response


def final(response: pb.ModelInferResponse, last: bool) -> None:
    """Note whether an answer is the last one to its request."""
    response.parameters[parameters.FINAL].bool_param = last


def _share(tensor: pb.ModelInferResponse.InferOutputTensor, place: memory.Place, array: Array, kind: DataType) -> None:
    data = codec.encode(array, kind)
    place.write(data, tensor.name)
    tensor.parameters[memory.REGION].string_param = place.region.name
    tensor.parameters[memory.SIZE].int64_param = len(data)
    if place.offset:
        tensor.parameters[memory.OFFSET].int64_param = place.offset
