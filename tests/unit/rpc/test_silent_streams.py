"""Clients that open streams and say nothing take no server from the others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.rpc.app import observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.observe import Observer
from tidemill.rpc.server import PROBE_STREAMS, AioServer, Server, Service, ThreadServer
from tidemill.rpc.status import from_rpc_error
from tidemill.telemetry.setup import setup

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]
TIMEOUT = 30
"""Seconds after which a call that should be answered at once has failed."""


class Toy:
    """The methods that no test calls are there, and None."""

    def __getattr__(self, name: str) -> None:
        return None


class ThreadToy(Toy):
    def __init__(self) -> None:
        self.go = threading.Event()

    def GetGroup(self, request: pb.GetGroupRequest, context: Any) -> pb.Group:
        return pb.Group(name=request.name)

    def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Any) -> Any:
        self.go.wait(TIMEOUT)
        return pb.Group()

    def Push(self, requests: Iterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        return pb.PushResponse(version=len(list(requests)))


class AioToy(Toy):
    async def GetGroup(self, request: pb.GetGroupRequest, context: Any) -> pb.Group:
        return pb.Group(name=request.name)

    async def Pull(self, request: pb.PullRequest, context: Any) -> AsyncIterator[pb.PullResponse]:
        yield pb.PullResponse()
        await asyncio.Event().wait()

    async def Push(self, requests: AsyncIterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        return pb.PushResponse(version=len([request async for request in requests]))


class Peer:
    """Calls one server, by several connections, for each has a bound of its own."""

    def __init__(self, channels: Sequence[Any], watch: Observer) -> None:
        self.channels = channels
        self.stub: Any = pg.ParameterServiceStub(channels[0])
        self._watch = watch
        self._open: list[Any] = []

    def open(self, make: Any, count: int) -> list[Any]:
        """Open `count` calls, made of a channel, and keep them."""
        calls = [make(self.channels[index % len(self.channels)]) for index in range(count)]
        self._open += calls
        return calls

    def in_flight(self, method: str) -> float:
        """Calls of a method at work in the server."""
        registry = self._watch.telemetry.registry
        labels = {"method": f"/{SERVICE.full_name}/{method}"}
        return registry.get_sample_value("tidemill_rpc_in_flight", labels) or 0

    async def answers(self) -> None:
        """Health and an ordinary call are answered."""
        health: Any = health_pb2_grpc.HealthStub(self.channels[0])
        await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        await self.stub.GetGroup(pb.GetGroupRequest(name="a"), timeout=TIMEOUT)


@asynccontextmanager
async def peer(server: Server, watch: Observer) -> AsyncIterator[Peer]:
    port = await server.start("127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(6)]
        for channel in channels:
            await stack.enter_async_context(channel)
        client = Peer(channels, watch)
        yield client
        for call in client._open:
            call.cancel()


def threads(toy: ThreadToy, **options: Any) -> tuple[ThreadServer, Observer]:
    watch = observer(ServerConfig(), setup("toy"))
    service = Service.of(pg.add_ParameterServiceServicer_to_server, toy, SERVICE)
    return ThreadServer([service], watch, **options), watch


def aio(**options: Any) -> tuple[AioServer, Observer]:
    watch = observer(ServerConfig(), setup("toy"))
    service = Service.of(pg.add_ParameterServiceServicer_to_server, AioToy(), SERVICE)
    return AioServer([service], watch, **options), watch


async def refusals(calls: Sequence[Any], count: int) -> list[errors.TidemillError]:
    """The errors of the first `count` of `calls` that end."""
    waits = [asyncio.ensure_future(call.code()) for call in calls]
    found = []
    async with asyncio.timeout(TIMEOUT):
        for ended in asyncio.as_completed(waits):
            await ended
            found = [call for call in calls if call.done()]
            if len(found) >= count:
                break
    for wait in waits:
        wait.cancel()
    return [await error_of(call) for call in found]


async def error_of(call: Any) -> errors.TidemillError:
    try:
        if not isinstance(call, grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call went well")


def reflect(channel: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    return stub.ServerReflectionInfo(timeout=TIMEOUT)


def push(channel: Any) -> Any:
    stub: Any = pg.ParameterServiceStub(channel)
    return stub.Push(timeout=TIMEOUT)


async def test_silent_reflection_holds_no_thread_of_others() -> None:
    async with peer(*threads(ThreadToy(), threads=2)) as client:
        refused = await refusals(client.open(reflect, 12), 10)
        assert {(type(error), error.reason) for error in refused} == {(errors.Exhausted, "TOO_MANY_STREAMS")}
        assert all(error.retry_after for error in refused)
        await client.answers()


async def test_silent_reflection_ends_and_its_place_is_free() -> None:
    async with peer(*threads(ThreadToy(), threads=2, reflection_silence=0.1)) as client:
        for call in client.open(reflect, 2):
            assert await call.code() == grpc.StatusCode.CANCELLED

        async def listed() -> bool:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channels[0])
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            try:
                return [answer async for answer in stub.ServerReflectionInfo(requests, timeout=TIMEOUT)] != []
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return False

        await until(listed)


async def test_a_silent_upload_ends_and_frees_its_thread() -> None:
    async with peer(*threads(ThreadToy(), threads=2, silence=0.1)) as client:
        for call in client.open(push, 4):
            assert await call.code() == grpc.StatusCode.CANCELLED
        await client.answers()


async def test_an_upload_that_goes_on_is_not_silent() -> None:
    async with peer(*threads(ThreadToy(), threads=2, silence=0.1)) as client:
        silent, sending = client.open(push, 2)
        sent = 0
        while not silent.done():
            await sending.write(pb.PushRequest())
            sent += 1
            await asyncio.wait([asyncio.ensure_future(silent.code())], timeout=0.01)
        await sending.done_writing()
        assert (await sending).version == sent


async def test_health_answers_while_a_thread_server_is_full() -> None:
    toy = ThreadToy()
    async with peer(*threads(toy, threads=2, calls=4)) as client:

        def delete(channel: Any) -> Any:
            return pg.ParameterServiceStub(channel).DeleteGroup(pb.DeleteGroupRequest(), timeout=TIMEOUT)

        refused = await refusals(client.open(delete, 20), 16)
        try:
            assert {(type(error), error.reason) for error in refused} == {(errors.Exhausted, "TOO_MANY_CALLS")}
            assert client.in_flight("DeleteGroup") == 2
            health: Any = health_pb2_grpc.HealthStub(client.channels[0])
            await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        finally:
            toy.go.set()


@pytest.mark.parametrize("kind", ["Pull", "Push"])
async def test_streams_leave_room_on_asyncio(kind: str) -> None:
    def start(channel: Any) -> Any:
        stub: Any = pg.ParameterServiceStub(channel)
        return stub.Pull(pb.PullRequest(), timeout=TIMEOUT) if kind == "Pull" else push(channel)

    async with peer(*aio(streams=20)) as client:
        calls = client.open(start, 50)
        await until(lambda: client.in_flight(kind) == 20)
        refused = await refusals(calls, 30)
        assert {(type(error), error.reason, error.retry_after) for error in refused} == {
            (errors.Exhausted, "TOO_MANY_STREAMS", 1.0)
        }
        await client.answers()
        for call in calls:
            call.cancel()
        await until(lambda: client.in_flight(kind) == 0)
        again = client.open(start, 20)
        await until(lambda: client.in_flight(kind) == 20)
        assert not any(call.done() for call in again)


@pytest.mark.parametrize("kind", ["health", "reflection"])
async def test_streams_of_probes_leave_room_on_asyncio(kind: str) -> None:
    def start(channel: Any) -> Any:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        return stub.Watch(request, timeout=TIMEOUT) if kind == "health" else reflect(channel)

    async with peer(*aio()) as client:
        refused = await refusals(client.open(start, PROBE_STREAMS + 10), 10)
        assert {(type(error), error.reason) for error in refused} == {(errors.Exhausted, "TOO_MANY_STREAMS")}
        await client.answers()
