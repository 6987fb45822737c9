"""Models in Python, as classes `TritonPythonModel`, each instance in a process of its own."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tidemill.errors import Internal, Invalid, TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Configuration
from tidemill.inference.isolation.pool import Gathering, Pool, unwanted
from tidemill.inference.isolation.restarts import Limits
from tidemill.inference.isolation.session import Request
from tidemill.inference.pythonbackend import modelconfig
from tidemill.inference.pythonbackend.constants import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
)
from tidemill.inference.pythonbackend.desk import PythonDesk
from tidemill.inference.runtimes.base import CallRuntime, Settings
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.statistics import Times
from tidemill.tensors import dtypes

PROGRAM = "tidemill.inference.pythonbackend.program"
_MOST_SEQUENCES = 100_000
_READY_SECONDS = 1.0


class PythonRuntime(CallRuntime):
    """One `TritonPythonModel`: as many processes as its configuration has instances, each running a batch at a time.

    All requests of a sequence go to the same instance.
    """

    platform = "python"

    def __init__(self, model: str, files: Mapping[str, bytes], settings: Settings, limits: Limits | None) -> None:
        configuration = settings.configuration or Configuration(name=model, backend="python", platform="python")
        self._desk = PythonDesk(model, settings.invoke, settings.metrics)
        payloads = [_payload(configuration, settings, index) for index in range(max(1, configuration.instances))]
        try:
            self.pool = Pool(model, PROGRAM, payloads, files, self._desk, limits)
        except BaseException:
            self._desk.close()
            raise
        try:
            self._configuration = modelconfig.completed(configuration, self.pool.loaded["config"])
        except BaseException:
            self.close()
            raise
        self._signature = _signature(self._configuration)
        self._members = _Members(self.pool.size)

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """`model.py`, or else the only file with that ending.

        Raises:
            Invalid: there is none, or more than one.
        """
        found = ["model.py"] if "model.py" in paths else [path for path in paths if path.endswith(".py")]
        if len(found) != 1:
            raise Invalid(
                f"a python model needs model.py or exactly one .py file, not {len(found)}", reason="MODEL_REFUSED"
            )
        return tuple(found)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings, *, limits: Limits | None = None) -> Self:
        """The model in the one file, which may import what lies beside it in `settings.directory`.

        Raises:
            Invalid: its source is not trusted, it raises something, or it asks for an environment of its own.
            Unavailable: no process can be had now, or loading takes too long.
        """
        if not settings.trusted or settings.directory is None:
            raise Invalid("python models are run from the operator's own repository only", reason="NOT_TRUSTED")
        configuration = settings.configuration
        if configuration is not None and configuration.parameters.get("EXECUTION_ENV_PATH"):
            raise Invalid(
                "EXECUTION_ENV_PATH is not supported: install what the model needs beside the server",
                reason="UNSUPPORTED_PARAMETER",
            )
        name = configuration.name if configuration is not None else settings.directory.parent.name
        return cls(name, files, settings, limits)

    @property
    def signature(self) -> Signature:
        """What the completed configuration declares, and the inputs and outputs that the server keeps for itself."""
        return self._signature

    @property
    def completed(self) -> Configuration:
        """The configuration with what the model's `auto_complete_config` has added."""
        return self._configuration

    @property
    def devices(self) -> tuple[str, ...]:
        """GPUs that the model was told to use; what it does use is its own business."""
        return tuple(f"GPU {number}" for number in self._configuration.gpus) or ("CPU",)

    @property
    def ready(self) -> bool:
        """Whether a process lives, and the model says that it is ready."""
        sessions = self.pool.sessions()
        return bool(sessions) and all(self._desk.ready(session, _READY_SECONDS) for session in sessions)

    def execute(self, calls: Sequence[Call]) -> tuple[list[Answer | TidemillError], Times | None]:
        """Run calls as one batch, or, if they belong to sequences of several instances, as one for each of these."""
        groups: dict[int | None, list[int]] = {}
        for index, call in enumerate(calls):
            groups.setdefault(self._member(call), []).append(index)
        if len(groups) == 1:
            return self._batch(calls, next(iter(groups)))
        replies: dict[int, Answer | TidemillError] = {}
        threads = [
            threading.Thread(target=self._part, args=(calls, indices, member, replies))
            for member, indices in groups.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [replies[index] for index in range(len(calls))], None

    def stream(self, call: Call, receive: Receive) -> None:
        """Begin a call that may have any number of answers."""
        try:
            self.pool.begin([self._request(call, receive)], [call], self._member(call))
        except TidemillError as error:
            receive(error, True)

    def close(self) -> None:
        """Finalize the instances, and end their processes."""
        self.pool.close()
        self._desk.close()

    def _part(
        self,
        calls: Sequence[Call],
        indices: Sequence[int],
        member: int | None,
        found: dict[int, Answer | TidemillError],
    ) -> None:
        replies, _ = self._batch([calls[index] for index in indices], member)
        found |= zip(indices, replies, strict=True)

    def _batch(self, calls: Sequence[Call], member: int | None) -> tuple[list[Answer | TidemillError], Times | None]:
        gathering = Gathering(len(calls))
        requests = [self._request(call, gathering.receive(index)) for index, call in enumerate(calls)]
        try:
            _, worker, packing = self.pool.begin(requests, calls, member)
        except TidemillError as error:
            return [error] * len(calls), None
        gathering.wait(calls)
        replies: list[Answer | TidemillError] = []
        for call, reply in zip(calls, gathering.replies, strict=True):
            if reply is not None:
                replies.append(reply)
            elif call.wanted:
                replies.append(Internal("the model gave no answer", reason="NO_ANSWER"))
            else:
                replies.append(unwanted(call))
        return replies, Times(input=packing, infer=worker.took)

    def _request(self, call: Call, receive: Receive) -> Request:
        specs = self._signature.input
        tensors = [
            (name, specs[name].datatype if name in specs else dtypes.of(array), (array,))
            for name, array in call.inputs.items()
        ]
        header = {
            "id": call.id,
            "correlation": call.correlation,
            "flags": call.starts * TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
            + call.ends * TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
            "timeout": round(call.patience * 1e6),
            "parameters": dict(call.parameters),
        }
        return Request(tensors=tensors, outputs=call.outputs, header=header, receive=receive, call=call)

    def _member(self, call: Call) -> int | None:
        if call.instance is not None:
            return call.instance
        sequence = self._configuration.sequence
        if sequence is None or not call.correlation or self.pool.size == 1:
            return None
        return self._members.of(call, 2 * sequence.idle)


class _Members:
    """Which instance runs which sequence: the one with the fewest, when it begins."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._loads = [0] * count
        self._known: OrderedDict[int | str, tuple[int, float]] = OrderedDict()

    def of(self, call: Call, idle: float) -> int:
        """The number of the instance; a sequence is forgotten at its end, or `idle` seconds after its last call."""
        now = time.monotonic()
        with self._lock:
            while self._known and (
                len(self._known) > _MOST_SEQUENCES or now - next(iter(self._known.values()))[1] > idle
            ):
                _, (member, _) = self._known.popitem(last=False)
                self._loads[member] -= 1
            member = self._known.pop(call.correlation, (-1, 0.0))[0]
            if member < 0:
                member = self._loads.index(min(self._loads))
                self._loads[member] += 1
            if call.ends:
                self._loads[member] -= 1
            else:
                self._known[call.correlation] = (member, now)
            return member


def _payload(configuration: Configuration, settings: Settings, index: int) -> dict[str, Any]:
    directory = settings.directory or Path()
    gpus = configuration.gpus
    args = {
        "model_instance_kind": "GPU" if gpus else "CPU",
        "model_instance_name": f"{configuration.name}_{index}",
        "model_instance_device_id": str(gpus[index % len(gpus)] if gpus else 0),
        "model_repository": str(directory.parent),
        "model_version": settings.version,
        "model_name": configuration.name,
    }
    return {"directory": str(directory), "config": modelconfig.to_dict(configuration), "args": args}


def _signature(configuration: Configuration) -> Signature:
    declared = configuration.signature
    sequence = configuration.sequence
    if sequence is None:
        return declared
    batch = (-1,) if configuration.max_batch else ()
    controls = [TensorSpec(each.name, each.datatype, (*batch, 1)) for each in sequence.controls]
    inputs = [TensorSpec(each.input, each.datatype, (*batch, *each.dims)) for each in sequence.states]
    outputs = [TensorSpec(each.output, each.datatype, (*batch, *each.dims)) for each in sequence.states]
    return Signature((*declared.inputs, *controls, *inputs), (*declared.outputs, *outputs))
