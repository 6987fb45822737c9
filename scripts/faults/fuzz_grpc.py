"""Mutated protobufs to every RPC of a server with all kinds of models: no fault, alive throughout, memory flat."""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from tests.support.chaos.controls import Control, controls
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.hostile import MODELS, Hostile, hostile, shared_object
from tests.support.chaos.watch import ENDED, FAULTS, GROWN, LATE, WRONG, Watch
from tests.support.mutation import Mutator
from tests.support.oipexamples import examples
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

WORDS = (*MODELS, "x", "y", "a", "b", "IN", "INPUT0", "INPUT1", "OUTPUT0", "sum", "total", "region", "hostiletest")
BAD = {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE", "DATA_LOSS"}
MEANT = {
    "RepositoryModelLoad": ("failed to load ",),
    "ModelInfer": ("the model failed on these inputs",),
}
"""Texts that the protocol's clients test for, under INTERNAL, which would blame the server."""
CONNECTIONS = 6
GOOD = 0.1
"""Part of the requests after which a good one comes."""


def infers() -> list[Message]:
    """Good requests to each model."""
    return [
        request("scale", x=np.ones((1, 2), np.float32)),
        request("batched", x=np.ones((3, 2), np.float32)),
        request("add", a=np.ones((1, 4), np.int32), b=np.ones((1, 4), np.int32)),
        request("labels", outputs={"y": 2}, x=np.ones((1, 2), np.float32)),
        request("text", x=np.array([b"a", b"bc"], object)),
        request("sums", sequence=7, x=np.ones((1, 1), np.int32)),
        request("sums", sequence="seven", x=np.ones((1, 1), np.int32)),
        request("chain", t0=np.ones((2, 2), np.float32)),
        request("repeat", IN=np.arange(3, dtype=np.int32)),
        request("add_sub", INPUT0=np.ones(4, np.float32), INPUT1=np.ones(4, np.float32)),
    ]


def request(model: str, *, sequence: int | str = 0, outputs: Mapping[str, int] | None = None, **inputs: Any) -> Message:
    """A request with these inputs."""
    made: Any = pb.ModelInferRequest(model_name=model, id="1")
    for name, array in inputs.items():
        kind = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}[array.dtype.name]
        made.inputs.add(name=name, datatype=kind, shape=array.shape)
        raw = array.tobytes() if kind != "BYTES" else b"".join(len(e).to_bytes(4, "little") + e for e in array.ravel())
        made.raw_input_contents.append(raw)
    for name, classes in (outputs or {}).items():
        made.outputs.add(name=name).parameters["classification"].int64_param = classes
    if sequence:
        arm = "int64_param" if isinstance(sequence, int) else "string_param"
        setattr(made.parameters["sequence_id"], arm, sequence)
        made.parameters["sequence_start"].bool_param = True
    found: Message = made
    return found


def calls(seed: int, count: int, key: str) -> Iterator[tuple[str, list[Message]]]:
    """Methods, and the mutants that go there."""
    good: dict[str, Sequence[Message]] = {**examples(key), "ModelInfer": infers(), "ModelStreamInfer": infers()}
    good = {method: [*map(_renamed, found)] for method, found in good.items()}
    methods = [*good, *["ModelInfer"] * 10]
    dice = random.Random(seed)
    streams = {method: Mutator(seed + n, (*WORDS, key)).mutants(good[method], 10**9) for n, method in enumerate(good)}
    while count > 0:
        method = dice.choice(methods)
        size = min(count, dice.randint(1, 8)) if method == "ModelStreamInfer" else 1
        yield method, [next(streams[method]) for _ in range(size)]
        count -= size


def _renamed(message: Any) -> Message:
    """The same for a model that is there and may be unloaded: not one of those that the others go to."""
    if type(message).__name__.startswith("RepositoryModel"):
        message.model_name = "scale"
    return message  # type: ignore[no-any-return]


class Attack:
    """Sends requests over several connections, which so reach all processes of the server.

    Args:
        server: which.
        watch: judges the answers.
        dice: for what is sent in between.
    """

    def __init__(self, server: Hostile, watch: Watch, dice: random.Random) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(server.address, options=options) for _ in range(CONNECTIONS)]
        self._stubs = itertools.cycle([pg.GRPCInferenceServiceStub(channel) for channel in self._channels])
        self._watch = watch
        self._dice = dice

    def run(self, seed: int, count: int, key: str) -> None:
        """Send everything."""
        number = 0
        for method, mutants in calls(seed, count, key):
            self._send(method, mutants)
            if self._dice.random() < GOOD:
                self._check(self._dice.choice(controls()))
            before, number = number, number + len(mutants)
            if before // 100 != number // 100:
                self._watch.look(number)
                if self._watch.silent or not self._restore():
                    break
        self._restore()
        self._watch.look(number)
        for channel in self._channels:
            channel.close()

    def _send(self, method: str, mutants: list[Message]) -> None:
        call: Any = getattr(next(self._stubs), method)
        code, text = "OK", ""
        began = time.monotonic()
        try:
            if method == "ModelStreamInfer":
                for reply in call(iter(mutants), timeout=30):
                    self._watch.answered(
                        "stream error" * bool(reply.error_message) or "OK", reply.error_message, mutants, fault=False
                    )
                return
            call(mutants[0], timeout=30)
        except grpc.RpcError as error:
            found: Any = error
            code, text = found.code().name, found.details() or ""
        took = None if method == "RepositoryModelLoad" else time.monotonic() - began
        self._note(method, mutants[0], done=code == "OK")
        meant = text.startswith(MEANT.get(method, ())) if code == "INTERNAL" else self._watch.served.excuses(text)
        self._watch.answered(code, text, mutants, fault=code in BAD and not meant, seconds=took)

    def _note(self, method: str, request: Any, *, done: bool) -> None:
        served = self._watch.served
        # As KServe names it, where there is no other name.
        model = request.model_name or request.repository_name if method.startswith("RepositoryModel") else ""
        if method == "RepositoryModelLoad":
            served.load(model, done=done)
        elif method == "RepositoryModelUnload":
            dependents = request.parameters["unload_dependents"].bool_param
            served.unload(model, done=done, dependents=dependents)

    def _check(self, control: Control) -> None:
        if not self._watch.served.has(control.model):
            return
        try:
            problem = control.judge(next(self._stubs).ModelInfer(control.message(), timeout=30))
        except grpc.RpcError as error:
            problem = str(error)
        self._watch.checked(control.model, problem)

    def _restore(self) -> bool:
        """Load what a mutant may have unloaded, and forget what another one has set; whether the server did so."""
        stub = next(self._stubs)
        try:
            for model in MODELS:
                if not stub.ModelReady(pb.ModelReadyRequest(name=model), timeout=30).ready:
                    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model), timeout=60)
            stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(), timeout=30)
        except grpc.RpcError as error:
            self._watch.silent.append(str(error))
            return False
        self._watch.served.restored()
        return True


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Send mutants, good requests in between, and look at the server after each hundred."""
    with shared_object() as key, hostile(work, options.plant) as server:
        await server.ready()
        watch = Watch(server, options.requests, options.growth, options.refusal_ms)
        attack = Attack(server, watch, random.Random(options.seed))
        await asyncio.to_thread(attack.run, options.seed, options.requests, key)
        return watch.report()


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={
        "inference-error": FAULTS,
        "inference-death": ENDED,
        "inference-leak": GROWN,
        "inference-lie": WRONG,
        "inference-tardy": LATE,
    },
    arguments={"requests": 10_000, "seed": 20_260_101, "growth": 5.0, "refusal_ms": 100.0},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
