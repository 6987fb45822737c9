"""Mutated protobufs to every RPC of a server with all kinds of models: no fault, alive throughout, memory flat."""

import argparse
import asyncio
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.hostile import FAULTS, GROWN, MODELS, Hostile, Watch, hostile, shared_object
from tests.support.mutation import Mutator
from tests.support.oipexamples import examples
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

WORDS = (*MODELS, "x", "y", "a", "b", "IN", "INPUT0", "INPUT1", "OUTPUT0", "sum", "total", "region", "hostiletest")
BAD = {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE", "DATA_LOSS"}
MEANT = ("failed to load ", "Request for unknown model: ", "the model failed on these inputs")
"""Texts that the protocol's clients test for, under a code that would blame the server."""


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


def attack(server: Hostile, watch: Watch, options: argparse.Namespace, key: str) -> None:
    """Send everything."""
    with grpc.insecure_channel(server.address) as channel:
        stub = pg.GRPCInferenceServiceStub(channel)
        number = 0
        for method, mutants in calls(options.seed, options.requests, key):
            call: Any = getattr(stub, method)
            try:
                if method == "ModelStreamInfer":
                    for reply in call(iter(mutants), timeout=30):
                        watch.answered(
                            "stream error" * bool(reply.error_message) or "OK",
                            reply.error_message,
                            mutants,
                            fault=False,
                        )
                else:
                    call(mutants[0], timeout=30)
                    watch.answered("OK", "", mutants, fault=False)
            except grpc.RpcError as error:
                found: Any = error
                code, text = found.code().name, found.details() or ""
                watch.answered(code, text, mutants, fault=code in BAD and not text.startswith(MEANT))
            if options.plant == "blame" and number == 100:
                watch.answered("INTERNAL", "invalid literal for int()", mutants, fault=True)
            before, number = number, number + len(mutants)
            if before // 100 != number // 100:
                watch.look(number)
                restore(stub)


def restore(stub: Any) -> None:
    """Load again what a mutant may have unloaded, and forget what another one has set."""
    for model in MODELS:
        if not stub.ModelReady(pb.ModelReadyRequest(name=model), timeout=30).ready:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model), timeout=60)
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(), timeout=30)


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Send mutants, and look at the server after each hundred."""
    with shared_object() as key, hostile(work) as server:
        await server.ready()
        watch = Watch(server, options.requests, leak=100_000 if options.plant == "leak" else 0)
        await asyncio.to_thread(attack, server, watch, options, key)
        return watch.report()


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"blame": FAULTS, "leak": GROWN},
    arguments={"requests": 10_000, "seed": 20_260_101},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
