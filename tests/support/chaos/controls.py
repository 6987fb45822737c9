"""Good requests to the models of `hostile`, and the answers that they must get."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.api.compat.inference import service_pb2 as pb

_KINDS = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Control:
    """A good request.

    Args:
        model: to which.
        inputs: arrays by name; texts are of type object.
        answer: the same.
        parameters: of the request.
        classes: by name of an output: how many classes are asked for.
    """

    model: str
    inputs: Mapping[str, np.ndarray[Any, Any]]
    answer: Mapping[str, np.ndarray[Any, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    def message(self) -> pb.ModelInferRequest:
        """As a message."""
        made = pb.ModelInferRequest(model_name=self.model, id="control")
        for name, array in self.inputs.items():
            made.inputs.add(name=name, datatype=_KINDS[array.dtype.name], shape=array.shape)
            made.raw_input_contents.append(_raw(array))
        for name, classes in self.classes.items():
            made.outputs.add(name=name).parameters["classification"].int64_param = classes
        for name, value in self.parameters.items():
            setattr(made.parameters[name], "bool_param" if isinstance(value, bool) else "int64_param", value)
        return made

    def document(self) -> dict[str, Any]:
        """As JSON."""
        made: dict[str, Any] = {"id": "control", "parameters": dict(self.parameters)}
        made["inputs"] = [
            {
                "name": name,
                "datatype": _KINDS[array.dtype.name],
                "shape": list(array.shape),
                "data": [
                    element.decode() if isinstance(element, bytes) else element for element in array.ravel().tolist()
                ],
            }
            for name, array in self.inputs.items()
        ]
        if self.classes:
            made["outputs"] = [
                {"name": name, "parameters": {"classification": classes}} for name, classes in self.classes.items()
            ]
        return made

    def judge(self, answer: pb.ModelInferResponse) -> str:
        """What is wrong with an answer; "" = nothing."""
        found = {
            output.name: (list(output.shape), raw)
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        wanted = {name: (list(array.shape), _raw(array)) for name, array in self.answer.items()}
        return "" if found == wanted and answer.id == "control" else f"wrong answer: {answer}"

    def judge_document(self, answer: Any) -> str:
        """The same in JSON."""
        found = {output["name"]: (output["shape"], output["data"]) for output in answer.get("outputs", [])}
        wanted = {
            name: (
                list(array.shape),
                [element.decode() if isinstance(element, bytes) else element for element in array.ravel().tolist()],
            )
            for name, array in self.answer.items()
        }
        return "" if found == wanted and answer.get("id") == "control" else f"wrong answer: {answer}"


def controls() -> Sequence[Control]:
    """One for each model that answers once; each time with another sequence."""
    pair = np.array([[1, 3]], np.float32)
    numbers = np.arange(4, dtype=np.int32).reshape(1, 4)
    four = np.arange(4, dtype=np.float32)
    texts = np.array([b"a", b"bc"], object)
    sequence = {"sequence_id": 10**12 + next(_NUMBERS), "sequence_start": True, "sequence_end": True}
    return [
        Control("scale", {"x": pair}, {"y": 2 * pair}),
        Control("batched", {"x": np.repeat(pair, 3, 0)}, {"y": 3 * np.repeat(pair, 3, 0)}),
        Control("add", {"a": numbers, "b": numbers}, {"total": 2 * numbers, "difference": 0 * numbers}),
        Control(
            "labels",
            {"x": pair},
            {"y": np.array([[b"3.000000:1:dog", b"1.000000:0:cat"]], object)},
            classes={"y": 2},
        ),
        Control("text", {"x": texts}, {"y": texts}),
        Control("sums", {"x": np.array([[5]], np.int32)}, {"sum": np.array([[5]], np.int32)}, sequence),
        Control("chain", {"t0": pair}, {"t2": 6 * pair}),
        Control("add_sub", {"INPUT0": four, "INPUT1": four}, {"OUTPUT0": 2 * four, "OUTPUT1": 0 * four}),
    ]


def _raw(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(element).to_bytes(4, "little") + element for element in array.ravel())
