"""Any runtime, in processes of its own."""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from tidemill.clock import Clock
from tidemill.errors import Internal, TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.isolation import settings as transfer
from tidemill.inference.isolation.channel import Message
from tidemill.inference.isolation.pool import Gathering, Pool, unwanted
from tidemill.inference.isolation.restarts import Limits
from tidemill.inference.isolation.session import Request, Session
from tidemill.inference.runtimes.base import CallRuntime, Runtime, Settings
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.statistics import Times
from tidemill.tensors.dtypes import DataType

PROGRAM = "tidemill.inference.isolation.tensors"


def isolate(
    kind: type[Runtime],
    files: Mapping[str, bytes],
    settings: Settings,
    *,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> Runtime:
    """A model in processes of its own: as many as its configuration has instances, and at least one.

    Args:
        kind: a runtime of `runtimes/`; one that always runs in processes of its own is loaded as ever.
        files, settings: as `kind.load` takes them.
        limits: of each process.
        clock: times restarts.

    Raises:
        Invalid: the model cannot be loaded.
        Unavailable: no process can be had now, or loading takes too long.
    """
    if issubclass(kind, CallRuntime):
        return kind.load(files, settings)
    return IsolatedRuntime(kind, files, settings, limits=limits, clock=clock)


class IsolatedRuntime(CallRuntime):
    """Runs `kind` in processes of its own. Batches are put together in the memory that is shared with them."""

    platform = "isolated"
    sees_calls = False

    def __init__(
        self,
        kind: type[Runtime],
        files: Mapping[str, bytes],
        settings: Settings,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        configuration = settings.configuration
        model = configuration.name if configuration is not None else ""
        payload = {"runtime": kind.__module__.rsplit(".", 1)[-1], "settings": transfer.to_text(settings)}
        instances = configuration.instances if configuration is not None else 0
        self.pool = Pool(model, PROGRAM, [payload] * max(1, instances), files, _Silent(), limits, clock)
        self.platform = kind.platform  # type: ignore[misc]  # of the model, not of where it runs
        loaded = self.pool.loaded
        self._signature = Signature(tuple(map(_spec, loaded["inputs"])), tuple(map(_spec, loaded["outputs"])))
        self._devices = tuple(loaded["devices"])

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """Is not of use: the runtime that is isolated selects."""
        return tuple(paths)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """Is not of use: see `isolate`. Raises Internal."""
        raise Internal("an isolated runtime is made by isolate()")

    @property
    def signature(self) -> Signature:
        """As the model file says."""
        return self._signature

    @property
    def devices(self) -> tuple[str, ...]:
        """On what it runs in its processes."""
        return self._devices

    @property
    def ready(self) -> bool:
        """Whether a process lives."""
        return bool(self.pool.pids)

    def execute(self, calls: Sequence[Call]) -> tuple[list[Answer | TidemillError], Times | None]:
        """Run calls as one batch, put together in shared memory; when it fails, all have the same error."""
        reply, times = self._run(calls)
        if len(calls) == 1 or not isinstance(reply, Answer):
            return [reply] * len(calls), times
        return _split(calls, reply), times

    def stream(self, call: Call, receive: Receive) -> None:
        """Run a call; its one answer is the last."""
        receive(self._run([call])[0], True)

    def close(self) -> None:
        """End the processes; all their memory returns."""
        self.pool.close()

    def _run(self, calls: Sequence[Call]) -> tuple[Answer | TidemillError, Times | None]:
        gathering = Gathering(1)
        names = tuple(dict.fromkeys(name for call in calls for name in call.outputs))
        specs = self._signature.input
        tensors = [(name, specs[name].datatype, [call.inputs[name] for call in calls]) for name in calls[0].inputs]
        request = Request(tensors=tensors, outputs=names, receive=gathering.receive(0))
        try:
            _, worker, packing = self.pool.begin([request], calls)
        except TidemillError as error:
            return error, None
        if not gathering.wait(calls):
            return unwanted(calls[0]), None
        reply = gathering.replies[0]
        if reply is None:
            return Internal("the model gave no answer", reason="NO_ANSWER"), None
        return reply, Times(input=packing, infer=worker.took)


class _Silent:
    """A desk for models that ask nothing."""

    def ask(self, session: Session, message: Message) -> None:
        """There is nothing to answer."""

    def tell(self, session: Session, message: Message) -> None:
        """There is nothing to know."""

    def ended(self, session: Session) -> None:
        """There is nothing to forget."""


def _split(calls: Sequence[Call], reply: Answer) -> list[Answer | TidemillError]:
    rows = sum(call.rows for call in calls)
    for name, array in reply.outputs.items():
        if array.ndim == 0 or len(array) != rows:
            error = Internal("the model failed on these inputs", reason="EXECUTION_FAILED")
            error.__cause__ = Internal(f"output {name!r} has shape {array.shape} for a batch of {rows}")
            return [error] * len(calls)
    bounds = np.cumsum([0, *(call.rows for call in calls)]).tolist()
    return [
        Answer(outputs={name: _rows(reply.outputs[name], start, end) for name in call.outputs})
        for call, start, end in zip(calls, bounds, bounds[1:], strict=False)
    ]


def _rows(array: Array, start: int, end: int) -> Array:
    return array[start:end]


def _spec(spec: Sequence[object]) -> TensorSpec:
    name, datatype, shape = spec
    assert isinstance(shape, list)
    return TensorSpec(str(name), DataType[str(datatype)], tuple(shape))
