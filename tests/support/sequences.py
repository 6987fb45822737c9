"""Models of sequences, and schedulers that run them."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.support.onnxmodels import model, tensor
from tests.support.timing import ManualTiming
from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Array, Call
from tidemill.inference.configuration import (
    Configuration,
    Control,
    ControlKind,
    DynamicBatching,
    SequenceBatching,
    SequenceState,
    TensorConfiguration,
)
from tidemill.inference.executor import Executor
from tidemill.inference.metrics import Metrics
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.runtimes.onnx import OnnxRuntime
from tidemill.inference.scheduling.sequence import SequenceScheduler
from tidemill.inference.scheduling.timing import Timing
from tidemill.inference.signatures import Signature
from tidemill.inference.statistics import Statistics
from tidemill.telemetry.setup import setup
from tidemill.tensors.dtypes import DataType

OLDEST = DynamicBatching()
STATE = SequenceState(input="before", output="after", datatype=DataType.INT32, dims=(1,))
FLAGS = tuple(
    Control(name=kind.name, kind=kind, datatype=DataType.INT32)
    for kind in (ControlKind.START, ControlKind.READY, ControlKind.END)
)
ID = Control(name="CORRID", kind=ControlKind.CORRID, datatype=DataType.UINT64)


def accumulator() -> bytes:
    """sum = after = x + before, of INT32 [n, 1]: with `STATE`, the sum of a sequence so far."""
    nodes = [helper.make_node("Add", ["x", "before"], ["sum"]), helper.make_node("Identity", ["sum"], ["after"])]
    inputs, outputs = (
        [tensor(name, TensorProto.INT32, ("n", 1)) for name in names] for names in (("x", "before"), ("sum", "after"))
    )
    return bytes(model(nodes, inputs, outputs).SerializeToString())


def told() -> bytes:
    """seen = [x, START, READY, END] of each row, of INT32 [n, 1] each; id = CORRID."""
    names = ("x", "START", "READY", "END")
    nodes = [
        helper.make_node("Concat", list(names), ["seen"], axis=1),
        helper.make_node("Identity", ["CORRID"], ["id"]),
    ]
    inputs = [tensor(name, TensorProto.INT32, ("n", 1)) for name in names]
    inputs.append(tensor("CORRID", TensorProto.UINT64, ("n", 1)))
    outputs = [tensor("seen", TensorProto.INT32, ("n", 4)), tensor("id", TensorProto.UINT64, ("n", 1))]
    return bytes(model(nodes, inputs, outputs).SerializeToString())


class Recorder(Runtime):
    """y = 10 * x; keeps what it was given, and can be held."""

    platform = "recorder"

    def __init__(self) -> None:
        self.runs: list[dict[str, list[Any]]] = []
        self.begun = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.poison: int | None = None

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        raise NotImplementedError

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: object) -> "Recorder":
        raise NotImplementedError

    @property
    def signature(self) -> Signature:
        raise NotImplementedError

    @property
    def xs(self) -> list[Any]:
        """What the input `x` was, run by run."""
        return [run["x"] for run in self.runs]

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.runs.append({name: array.tolist() for name, array in inputs.items()})
        self.begun.release()
        assert self.free.wait(20)
        if self.poison is not None and (inputs["x"] == self.poison).any():
            raise ValueError("poison")
        return [inputs["x"] * 10] * len(outputs)


class Reply:
    """Receives the replies to one call."""

    def __init__(self) -> None:
        self.replies: list[Answer | TidemillError | None] = []
        self.done = threading.Event()

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        assert not self.done.is_set()
        self.replies.append(reply)
        if final:
            self.done.set()

    @property
    def last(self) -> Answer | TidemillError | None:
        """The last reply, when it is there."""
        assert self.done.wait(20)
        return self.replies[-1]

    def value(self, output: str) -> Any:
        """An output of the one answer."""
        last = self.last
        if isinstance(last, TidemillError):
            raise last
        assert last is not None
        return last.outputs[output].ravel().tolist()[0]


def call(correlation: int | str, x: int = 0, flags: str = "", output: str = "y", **more: Any) -> Call:
    """A request with x = [[x]]; flags are "s" for the start and "e" for the end."""
    given: dict[str, Any] = {
        "inputs": {"x": np.array([[x]], np.int32)},
        "outputs": [output],
        "correlation": correlation,
        "starts": "s" in flags,
        "ends": "e" in flags,
        **more,
    }
    return Call(**given)


class Sequences:
    """A scheduler and what it runs on."""

    def __init__(self, scheduler: SequenceScheduler, statistics: Statistics, timing: Timing) -> None:
        self.scheduler = scheduler
        self.statistics = statistics
        self._timing = timing

    @property
    def timing(self) -> ManualTiming:
        """The time under the test's hand."""
        assert isinstance(self._timing, ManualTiming)
        return self._timing

    def send(self, *args: Any, **more: Any) -> Reply:
        """Submit what `call` makes of this."""
        reply = Reply()
        self.scheduler.submit(call(*args, **more), reply)
        return reply

    def ask(self, *args: Any, output: str = "y", **more: Any) -> Any:
        """The first element of the output, of what `call` makes of this. Raises TidemillError."""
        return self.send(*args, output=output, **more).value(output)


@contextmanager
def running(
    runtime: Runtime,
    sequence: SequenceBatching,
    *,
    kind: type[SequenceScheduler] = SequenceScheduler,
    timing: Timing | None = None,
    **configured: Any,
) -> Iterator[Sequences]:
    """A scheduler for a model `m`; with 4 rows, one instance and a manual clock unless told otherwise."""
    telemetry, statistics, timing = setup("test"), Statistics(), timing or ManualTiming()
    x = TensorConfiguration(name="x", datatype=DataType.INT32, dims=(1,))
    given: dict[str, Any] = {"max_batch": 4, "instances": 1, "inputs": (x,), **configured}
    configuration = Configuration(name="m", backend="test", sequence=sequence, **given)
    executor = Executor(
        runtime,
        "m",
        "1",
        statistics,
        Metrics(telemetry.registry).series("m", "1"),
        telemetry.tracer,
        instances=configuration.instances,
        decoupled=configuration.decoupled,
    )
    scheduler = kind(configuration, executor, timing)
    try:
        yield Sequences(scheduler, statistics, timing)
    finally:
        if isinstance(runtime, Recorder):
            runtime.free.set()
        scheduler.close()


def onnx(data: bytes) -> OnnxRuntime:
    """The model in ONNX Runtime."""
    return OnnxRuntime.load({"model.onnx": data}, Settings())
