"""Served shards of the parameter server, in this process or in their own, and workers that use them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from tests.support.serve import serving
from tests.support.wait import until
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.parameters.app import build
from tidemill.parameters.config import Config
from tidemill.rpc.app import App
from tidemill.rpc.status import translated
from tidemill.tensors.blocks import Array

T = TypeVar("T")
GROUP = "groups/g"


@dataclass(frozen=True, slots=True)
class Shards:
    """Shards that run, and what manages their groups."""

    addresses: list[str]
    admin: ParametersAdmin
    apps: list[App]

    async def group(
        self,
        elements: int | Sequence[tuple[str, Sequence[int]]],
        *,
        optimizer: str = "sgd",
        workers: int = 1,
        name: str = GROUP,
        parameters: Mapping[str, float | bool] | None = None,
        **way: Any,
    ) -> list[pb.Group]:
        """A new group of that many elements, or of these tensors."""
        tensors = [("w", (elements,))] if isinstance(elements, int) else elements
        return await self.admin.create_group(
            name, tensors, optimizer=optimizer, parameters=parameters, workers=workers, **way
        )

    async def group_of_blocks(
        self,
        elements: int,
        size: int,
        *,
        optimizer: str = "sgd",
        workers: int = 1,
        parameters: Mapping[str, float | bool] | None = None,
    ) -> list[pb.Group]:
        """A new group in blocks of `size` elements, smaller than they are by themselves, dealt out in turn."""
        count = len(self.addresses)
        chosen = await self.admin.check_optimizer(optimizer, parameters)
        calls = []
        for shard, (caller, stub) in enumerate(zip(self.admin._callers, self.admin._stubs, strict=True)):
            group = pb.Group(name=GROUP, workers=workers, shard=shard, shards=count, optimizer=chosen)
            group.tensors.add(name="w", dtype=tensors_pb2.DATA_TYPE_FP32, shape=[elements])
            for index in range(shard, -(-elements // size), count):
                group.blocks.add(index=index, offset=index * size, elements=min(size, elements - index * size))
            calls.append(caller.unary(stub.CreateGroup, pb.CreateGroupRequest(group=group)))
        return list(await asyncio.gather(*calls))

    def client(self, name: str = GROUP, **options: Any) -> ParametersClient:
        """A worker's client of a group, which shares no memory unless asked to."""
        return ParametersClient(self.addresses, name, **{"shared": False, **options})

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the shards in this process."""
        return sum(app.telemetry.registry.get_sample_value(name, labels) or 0 for app in self.apps)


@asynccontextmanager
async def shards(count: int = 1, *, kept: Path | None = None, **settings: Any) -> AsyncIterator[Shards]:
    """So many shards in this process, with a registry only if `settings` name one, and logs only in a folder `kept`."""
    async with AsyncExitStack() as stack:
        apps = []
        for shard in range(count):
            data = "" if kept is None else str(kept / f"shard-{shard}")
            given = {"port": 0, "ops_port": 0, "shard": shard, "registry_address": "", "data": data}
            config = Config(**{**given, **settings})
            apps.append(build(config))
        addresses = [await stack.enter_async_context(serving(app)) for app in apps]
        admin = await stack.enter_async_context(ParametersAdmin(addresses))
        yield Shards(addresses, admin, apps)


class ShardProcess:
    """One shard in a process of its own."""

    def __init__(self, folder: Path, shard: int, *flags: str) -> None:
        self._announce = folder / f"shard-{shard}.json"
        arguments = [f"--shard={shard}", f"--announce-file={self._announce}", "--port=0", "--ops-port=0"]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tidemill.parameters",
                *arguments,
                "--registry-address=",
                "--log-level=ERROR",
                *flags,
            ],
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def started(self) -> str:
        """Its address, once it serves."""
        await until(lambda: self._announce.exists() or self._process.poll() is not None, what="a shard starts")
        return f"127.0.0.1:{json.loads(self._announce.read_text())['grpc']}"

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of memory that it uses; `VmHWM`: that it has used at most."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def end(self) -> int:
        """Stop it; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@asynccontextmanager
async def shard_processes(folder: Path, count: int, *flags: str) -> AsyncIterator[tuple[Shards, list[ShardProcess]]]:
    """So many shards, each in a process of its own."""
    async with AsyncExitStack() as stack:
        processes = []
        for shard in range(count):
            processes.append(ShardProcess(folder, shard, *flags))
            stack.callback(processes[-1].end)
        addresses = [await process.started() for process in processes]
        admin = await stack.enter_async_context(ParametersAdmin(addresses))
        yield Shards(addresses, admin, []), processes


class Wire:
    """One shard called message by message, for what `ParametersClient` would never send."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)])
        self.stub = pg.ParameterServiceStub(self.channel)

    def push(self, *messages: pb.PushRequest) -> pb.PushResponse:
        """Push these messages as they are."""
        with translated():
            return self.stub.Push(iter(messages), timeout=30)

    def get(self, name: str = GROUP) -> pb.Group:
        """The shard's part of the group."""
        with translated():
            return self.stub.GetGroup(pb.GetGroupRequest(name=name), timeout=30)


@contextmanager
def wire(address: str) -> Iterator[Wire]:
    """A `Wire` to the shard at `address`."""
    opened = Wire(address)
    try:
        yield opened
    finally:
        opened.channel.close()


def header(worker: int = 0, step: int = 0, *, attempt: int = 0, samples: int = 1, name: str = GROUP) -> pb.PushRequest:
    """The first message of a push."""
    return pb.PushRequest(header=pb.PushHeader(name=name, worker=worker, step=step, attempt=attempt, samples=samples))


def block(index: int, values: Array | bytes) -> pb.PushRequest:
    """A further message of a push."""
    data = values if isinstance(values, bytes) else values.astype("<f4").tobytes()
    return pb.PushRequest(block=pb.BlockData(block=index, data=data))


async def together(*jobs: Callable[[], T]) -> list[T]:
    """Run `jobs` in threads of their own, and give their results; the first error ends it."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(pool, job) for job in jobs)))


def gradient(elements: int, worker: int, step: int) -> Array:
    """Some gradient, always the same for the same worker and step."""
    return np.random.default_rng((worker, step)).standard_normal(elements, dtype=np.float32)


def first_values(elements: int) -> Array:
    """Some first parameters."""
    return np.random.default_rng(99).standard_normal(elements, dtype=np.float32)


def train(
    client: ParametersClient,
    worker: int,
    steps: range,
    *,
    samples: int = 1,
    make: Callable[[int, int, int], Array] = gradient,
) -> Array:
    """Push a gradient in each step and pull what comes of it; the last parameters."""
    elements = client.layout.elements
    values = client.pull(steps.start)[1]
    for step in steps:
        client.push(make(elements, worker, step), worker=worker, step=step, samples=samples)
        client.pull(step + 1, values)
    return values
