"""Brief calls are answered by the thread that reads them, all others as ever."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.support.wait import until
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.rpc import shortcut
from tidemill.rpc.app import observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import Service, ThreadServer
from tidemill.rpc.shortcut import Brief
from tidemill.telemetry.setup import setup

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]
METHOD = f"/{SERVICE.full_name}/GetGroup"


class Toy:
    """Tells on which thread it ran; a group named "held" waits until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.held = threading.Semaphore(0)

    def __getattr__(self, name: str) -> None:
        return None

    def GetGroup(self, request: pb.GetGroupRequest, context: Any) -> pb.Group:
        if request.name == "held":
            self.held.release()
            self.free.wait(30)
        return pb.Group(name=threading.current_thread().name)

    def Pull(self, request: pb.PullRequest, context: Any) -> Iterator[pb.PullResponse]:
        yield pb.PullResponse(version=request.version)


class World:
    """The toy and its server."""

    def __init__(self, server: ThreadServer, toy: Toy, watch: Any, address: str) -> None:
        self.server = server
        self.toy = toy
        self.address = address
        self._registry = watch.telemetry.registry

    def count(self, metric: str, **labels: str) -> float:
        return self._registry.get_sample_value(metric, {"method": METHOD, **labels}) or 0

    def stub(self) -> Any:
        return pg.ParameterServiceStub(grpc.aio.insecure_channel(self.address))


def quick(request: pb.GetGroupRequest) -> bool:
    """Requests for groups are brief, but for those of which the name says otherwise."""
    if request.name == "broken":
        raise ZeroDivisionError
    return request.name not in ("held", "slow")


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    toy, watch = Toy(), observer(ServerConfig(), setup("toy"))
    service = Service.of(pg.add_ParameterServiceServicer_to_server, toy, SERVICE)
    server = ThreadServer([service], watch, **{"threads": 4, "running": 2, "brief": {METHOD: Brief(quick)}, **options})
    port = await server.start("127.0.0.1", 0)
    await server.set_serving(True)
    try:
        yield World(server, toy, watch, f"127.0.0.1:{port}")
    finally:
        toy.free.set()
        await server.stop(0)


def test_grpcio_is_made_as_is_needed() -> None:
    """Without this everything still works, and nobody would see that it has become slower."""
    assert shortcut.AVAILABLE


async def test_brief_calls_have_one_thread_and_others_the_pools() -> None:
    async with world() as served:
        stub = served.stub()
        names = {(await stub.GetGroup(pb.GetGroupRequest(name="brief"))).name for _ in range(20)}
        assert len(names) == 1
        assert not names.pop().startswith("grpc_")
        assert (await stub.GetGroup(pb.GetGroupRequest(name="slow"))).name.startswith("grpc_")


async def test_where_grpcio_is_otherwise_calls_go_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.rpc.server.AVAILABLE", False)
    async with world() as served:
        assert (await served.stub().GetGroup(pb.GetGroupRequest(name="brief"))).name.startswith("grpc_")


async def test_brief_calls_are_answered_while_others_hold_every_thread() -> None:
    async with world(calls=8) as served:
        stub = served.stub()
        held = [stub.GetGroup(pb.GetGroupRequest(name="held")) for _ in range(4)]
        await until(lambda: served.toy.held._value == 4)
        assert not (await stub.GetGroup(pb.GetGroupRequest(name="brief"), timeout=10)).name.startswith("grpc_")
        served.toy.free.set()
        for call in held:
            await call


async def test_calls_of_both_kinds_count_once_and_are_bounded() -> None:
    async with world(calls=4) as served:
        stub = served.stub()
        for _ in range(20):
            await stub.GetGroup(pb.GetGroupRequest(name="brief"))
            await stub.GetGroup(pb.GetGroupRequest(name="slow"))
        held = [stub.GetGroup(pb.GetGroupRequest(name="held")) for _ in range(4)]
        await until(lambda: served.count("tidemill_rpc_in_flight") == 4)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetGroup(pb.GetGroupRequest(name="brief"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        served.toy.free.set()
        for call in held:
            await call
        await until(lambda: served.count("tidemill_rpc_in_flight") == 0)
        assert (await stub.GetGroup(pb.GetGroupRequest(name="brief"))).name
        assert served.count("tidemill_rpc_handled_total", code="OK") == 45


async def test_what_is_no_request_is_refused() -> None:
    async with world() as served:
        raw: Any = grpc.aio.insecure_channel(served.address)
        with pytest.raises(grpc.aio.AioRpcError) as malformed:
            await raw.unary_unary(METHOD)(b"\xff\xff\xff")
        assert malformed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as none:
            await raw.stream_unary(METHOD)(iter(()))
        assert none.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await served.stub().GetGroup(pb.GetGroupRequest(name="brief"))).name


async def test_a_fault_in_the_question_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as served:
        stub = served.stub()
        with pytest.raises(grpc.aio.AioRpcError) as fault:
            await stub.GetGroup(pb.GetGroupRequest(name="broken"))
        assert fault.value.code() is grpc.StatusCode.UNKNOWN
        assert "could not be answered" in caplog.text
        assert (await stub.GetGroup(pb.GetGroupRequest(name="brief"))).name


async def test_callers_that_go_away_leave_nothing_behind() -> None:
    async with world(calls=4) as served:
        stub = served.stub()
        for _ in range(3):
            held = [stub.GetGroup(pb.GetGroupRequest(name="held")) for _ in range(4)]
            await until(lambda: served.toy.held._value == 4)
            for call in held:
                call.cancel()
            served.toy.free.set()
            await until(lambda: served.count("tidemill_rpc_in_flight") == 0)
            served.toy.free.clear()
            for _ in range(4):
                served.toy.held.acquire()
        # A call of which the server knows, and whose request never comes.
        raw: Any = grpc.aio.insecure_channel(served.address)
        silent = [raw.stream_unary(METHOD)() for _ in range(4)]
        await until(lambda: served.server._pool.full)
        for one in silent:
            one.cancel()
        await until(lambda: not served.server._pool.full)
        assert (await stub.GetGroup(pb.GetGroupRequest(name="brief"))).name


async def test_calls_in_work_are_ended_with_the_server() -> None:
    async with world() as served:
        held = served.stub().GetGroup(pb.GetGroupRequest(name="held"))
        await until(lambda: served.toy.held._value == 1)
        served.toy.free.set()
        await served.server.stop(10)
        assert (await held).name
