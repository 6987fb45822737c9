"""A model that marks rows and remembers what it saw, under a scheduler that puts calls together."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from opentelemetry.context import Context

from tidemill.errors import Internal, TidemillError
from tidemill.inference.assembly import Assembler
from tidemill.inference.calls import Answer, Array, Call
from tidemill.inference.configuration import Configuration, DynamicBatching, TensorConfiguration
from tidemill.inference.desired import Version
from tidemill.inference.loaded import Loaded
from tidemill.inference.metrics import Metrics
from tidemill.inference.responses import ResponseCache
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.scheduling import dynamic
from tidemill.inference.signatures import Signature
from tidemill.telemetry.setup import Telemetry, setup
from tidemill.tensors.dtypes import DataType

POISON = -1
"""A row with this in it makes the model fail."""


def marked(x: Array) -> Array:
    """What the model makes of rows."""
    result: Array = 3 * x + 1
    return result


class Marking(Runtime):
    """y = 3 * x + 1 and width = the rows' length, of INT64 [n, any]; fails for a batch with a poisoned row.

    `batches` holds what ran, in order. With `hold` it stops in each run until `let` is called.
    """

    platform = "marking"

    def __init__(self, *, hold: bool = False) -> None:
        self.batches: list[Array] = []
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()
        self._began = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._hold = hold

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(paths)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        return cls()

    @property
    def signature(self) -> Signature:
        return configuration().signature

    @property
    def sizes(self) -> list[int]:
        """Rows of the batches that ran."""
        return [len(batch) for batch in self.batches]

    @property
    def seen(self) -> list[int]:
        """First elements of all rows that ran."""
        return [int(row[0]) for batch in self.batches for row in batch]

    def began(self) -> None:
        """Return when one more run has begun."""
        assert self._began.acquire(timeout=20)

    def let(self, runs: int = 1) -> None:
        """Let so many runs go on."""
        self._go.release(runs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        x = inputs["x"]
        with self._lock:
            self.batches.append(np.array(x))
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            if self._hold:
                self._began.release()
                assert self._go.acquire(timeout=20)
            if (x == POISON).any():
                raise Internal("poisoned", reason="EXECUTION_FAILED")
            results = {"y": marked(x), "width": np.full((len(x), 1), x.shape[1])}
            return [results[name] for name in outputs]
        finally:
            with self._lock:
                self._running -= 1


def configuration(**more: Any) -> Configuration:
    """Of the model; batches of up to 8 rows unless it says otherwise."""
    return Configuration(
        **{
            "name": "m",
            "backend": "marking",
            "max_batch": 8,
            "inputs": (TensorConfiguration(name="x", datatype=DataType.INT64, dims=(-1,)),),
            "outputs": (
                TensorConfiguration(name="y", datatype=DataType.INT64, dims=(-1,)),
                TensorConfiguration(name="width", datatype=DataType.INT64, dims=(1,)),
            ),
            "dynamic": DynamicBatching(),
            **more,
        }
    )


def loaded(
    runtime: Runtime,
    telemetry: Telemetry | None = None,
    responses: ResponseCache | None = None,
    bound: int = 1024,
    **more: Any,
) -> Loaded:
    """The model, loaded; `more` is for its configuration."""
    telemetry = telemetry or setup("test")
    assembler = Assembler(
        telemetry.tracer,
        Metrics(telemetry.registry),
        (lambda given, executor: dynamic.choose(given, executor, bound),),
        responses,
    )
    version = Version(model="m", number=1, format="marking", artifact="a" * 64)
    return assembler.assemble(version, configuration(**more), runtime, Context())


def call(*rows: int, width: int = 2, **more: Any) -> Call:
    """A call with these rows, each of which is its number `width` times."""
    x = np.repeat(np.array(rows, np.int64)[:, None], width, axis=1)
    return Call(**{"inputs": {"x": x}, "outputs": ["y"], "rows": len(rows), **more})


def problem(call: Call, answer: Answer) -> str:
    """What is wrong with an answer; "" when it is just what this caller is to get."""
    x = call.inputs["x"]
    expected = {"y": marked(x), "width": np.full((len(x), 1), x.shape[1])}
    if list(answer.outputs) != list(call.outputs):
        return f"has outputs {list(answer.outputs)}, not {list(call.outputs)}"
    for name, array in answer.outputs.items():
        if not np.array_equal(array, expected[name]):
            return f"{name} is {array.tolist()}, not {expected[name].tolist()}"
    return ""


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.001)


class Caller:
    """A thread that waits for one answer."""

    def __init__(self, loaded: Loaded, call: Call) -> None:
        self.reply: Answer | TidemillError | None = None
        self._loaded = loaded
        self._call = call
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.reply = self._loaded.scheduler.infer(self._call)
        except TidemillError as error:
            self.reply = error

    def result(self) -> Answer | TidemillError:
        """The reply, when it is there."""
        self._thread.join(20)
        assert self.reply is not None, "no reply came"
        return self.reply


class Mailbox:
    """Receives what is submitted."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.replies: dict[str, Answer | TidemillError] = {}
        self._came = threading.Semaphore(0)

    def of(self, name: str) -> Callable[[Answer | TidemillError | None, bool], None]:
        """Takes the reply to a call of this name."""

        def receive(reply: Answer | TidemillError | None, final: bool) -> None:
            assert reply is not None
            assert final
            assert name not in self.replies, "answered twice"
            self.order.append(name)
            self.replies[name] = reply
            self._came.release()

        return receive

    def wait(self, count: int = 1) -> None:
        """Return when so many more replies have come."""
        for _ in range(count):
            assert self._came.acquire(timeout=20), "no reply came"
