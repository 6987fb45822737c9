"""Runtimes for tests of the protocol: their answers are easy to foretell."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from tidemill.errors import Invalid, TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.configuration import Configuration, TensorConfiguration
from tidemill.inference.runtimes.base import CallRuntime, Runtime, Settings
from tidemill.inference.signatures import Signature
from tidemill.inference.statistics import Times
from tidemill.tensors.dtypes import DataType


def tensor(name: str, datatype: DataType = DataType.FP32, dims: tuple[int, ...] = (-1,), **more: Any) -> Any:
    """The declaration of an input or output."""
    return TensorConfiguration(name=name, datatype=datatype, dims=dims, **more)


def configuration(name: str, inputs: Sequence[Any], outputs: Sequence[Any], **more: Any) -> Configuration:
    """How a model is run."""
    return Configuration(name=name, backend="test", platform="test", inputs=(*inputs,), outputs=(*outputs,), **more)


class Function(Runtime):
    """Computes what a function says, of the inputs by name."""

    platform = "test"

    def __init__(self, function: Callable[..., Mapping[str, Array]]) -> None:
        self.function = function

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        raise NotImplementedError

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        raise NotImplementedError

    @property
    def signature(self) -> Signature:
        raise NotImplementedError

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        found = self.function(**inputs)
        return [found[name] for name in outputs]


class Talker(Function, CallRuntime):
    """Answers `n` times with 0, 1, ...; with `n` < 0 it fails after -n answers.

    The parameter `end` says how the last answer is marked: "with" it (the default), or "after" it by an empty one;
    `width` says how many elements an answer has. What a call's parameters were comes back as those of its answers.
    """

    def __init__(self) -> None:
        super().__init__(dict)
        self.calls: list[Call] = []
        self.asked = threading.Event()
        self.go = threading.Event()
        self.given = 0

    def execute(self, calls: Sequence[Call]) -> tuple[list[Answer | TidemillError], Times | None]:
        self.calls += calls
        return [Answer(outputs={"y": call.inputs["n"]}, parameters=call.parameters) for call in calls], None

    def stream(self, call: Call, receive: Receive) -> None:
        self.calls.append(call)
        threading.Thread(target=self._talk, args=(call, receive), daemon=True).start()

    def _talk(self, call: Call, receive: Receive) -> None:
        if call.parameters.get("wait"):
            self.asked.set()
            self.go.wait(20)
        count = int(call.inputs["n"].ravel()[0])
        width = int(call.parameters.get("width", 1))
        after = call.parameters.get("end") == "after"
        for index in range(abs(count)):
            if not call.wanted:
                break
            self.given += 1
            last = count > 0 and index == count - 1 and not after
            receive(Answer(outputs={"y": np.full(width, index, np.int32)}, parameters=call.parameters), last)
        else:
            if count < 0:
                receive(Invalid("no more to say"), True)
            elif after or not count:
                receive(None, True)
            return
        receive(None, True)
