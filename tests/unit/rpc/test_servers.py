"""All kinds of server do the same things around every call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.rpc import deadline
from tidemill.rpc.app import App, observer
from tidemill.rpc.caller import Caller
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import AioServer, Server, Service, ThreadServer
from tidemill.rpc.shortcut import Brief
from tidemill.rpc.status import translated
from tidemill.telemetry.setup import setup

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]


class Domain:
    """What the toy service does, for both kinds of server."""

    def __init__(self) -> None:
        self.left: float | None = None

    def get(self, name: str) -> pb.Group:
        self.left = deadline.remaining()
        if name == "missing":
            raise errors.NotFound("no such group", metadata={"group": name})
        if name == "wrong":
            raise errors.invalid("name", "is wrong")
        if name == "full":
            raise errors.Exhausted("full", retry_after=1.5)
        if name == "bug":
            raise ZeroDivisionError("secret detail /etc/passwd")
        return pb.Group(name=name)


class Unimplemented:
    """The methods that no test calls are there, and None."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __getattr__(self, name: str) -> None:
        return None


class AioToy(Unimplemented):
    async def GetGroup(self, request: pb.GetGroupRequest, context: Any) -> pb.Group:
        return self.domain.get(request.name)

    async def Pull(self, request: pb.PullRequest, context: Any) -> AsyncIterator[pb.PullResponse]:
        for version in range(request.version):
            yield pb.PullResponse(version=version)
        self.domain.get(request.name)

    async def Push(self, requests: AsyncIterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        return pb.PushResponse(version=len([request async for request in requests]))


class ThreadToy(Unimplemented):
    def GetGroup(self, request: pb.GetGroupRequest, context: Any) -> pb.Group:
        return self.domain.get(request.name)

    def Pull(self, request: pb.PullRequest, context: Any) -> Iterator[pb.PullResponse]:
        for version in range(request.version):
            yield pb.PullResponse(version=version)
        self.domain.get(request.name)

    def Push(self, requests: Iterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        return pb.PushResponse(version=len(list(requests)))


class World:
    """A served toy, a caller, and the spans that both made."""

    def __init__(self, kind: str, check: Callable[[], Awaitable[None]]) -> None:
        self.spans = InMemorySpanExporter()
        self.telemetry = setup("toy")
        self.telemetry.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.domain = Domain()
        config = ServerConfig()
        watch = observer(config, self.telemetry)
        server: Server
        if kind == "aio":
            server = AioServer(
                [Service.of(pg.add_ParameterServiceServicer_to_server, AioToy(self.domain), SERVICE)], watch
            )
        else:
            services = [Service.of(pg.add_ParameterServiceServicer_to_server, ThreadToy(self.domain), SERVICE)]
            # Brief calls are answered by the thread that reads them; those that are not, by one of the pool.
            method = f"/{SERVICE.full_name}/GetGroup"
            brief = {} if kind == "threads" else {method: Brief(lambda request: kind == "brief")}
            server = ThreadServer(services, watch, threads=4, running=2, brief=brief)
        self.app = App("toy", config, self.telemetry, server, checks={"dependency": check})


@pytest.fixture(params=["aio", "threads", "brief", "not brief"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def served(
    kind: str, check: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[World, Caller, Any]]:
    async def fine() -> None:
        return

    world = World(kind, check or fine)
    await world.app.start()
    caller = Caller(world.app.address, [SERVICE], tracer=world.telemetry.tracer)
    try:
        yield world, caller, pg.ParameterServiceStub(caller.channel)
    finally:
        await caller.close()
        await world.app.stop(grace=0)


async def test_errors_arrive_as_they_were_raised(kind: str) -> None:
    async with served(kind) as (_, caller, stub):
        with pytest.raises(errors.NotFound) as missing:
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="missing"))
        assert missing.value.metadata["group"] == "missing"
        with pytest.raises(errors.Invalid) as wrong:
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="wrong"))
        assert wrong.value.violations == {"name": "is wrong"}
        with pytest.raises(errors.Exhausted) as full:
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="full"))
        assert full.value.retry_after == 1.5


async def test_unexpected_error_says_only_its_request_id(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(kind) as (_, caller, stub):
        with pytest.raises(errors.Internal) as bug:
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="bug"))
        assert "secret" not in bug.value.message
        logged = [record for record in caplog.records if record.message == "unexpected error"]
        assert [getattr(record, "request_id", "") for record in logged] == [bug.value.metadata["request_id"]]


async def test_streams_and_their_late_errors(kind: str) -> None:
    async with served(kind) as (_, caller, stub):
        got = []
        with pytest.raises(errors.NotFound):  # noqa: PT012 what came before the error counts
            async for response in caller.stream(stub.Pull, pb.PullRequest(name="missing", version=3)):
                got.append(response.version)
        assert got == [0, 1, 2]

        async def chunks() -> AsyncIterator[pb.PushRequest]:
            for _ in range(5):
                yield pb.PushRequest()

        assert (await caller.upload(stub.Push, chunks())).version == 5


async def test_one_trace_over_client_and_server_with_the_error_seen(kind: str) -> None:
    async with served(kind) as (world, caller, stub):
        with world.telemetry.tracer.start_as_current_span("root"), pytest.raises(errors.NotFound):
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="missing"))
        await until(lambda: len(world.spans.get_finished_spans()) == 3)
        spans = world.spans.get_finished_spans()
        assert {span.context.trace_id for span in spans if span.context} == {spans[0].context.trace_id}
        calls = [span for span in spans if span.name != "root"]
        assert all(span.name == "tidemill.api.parameters.v1.ParameterService/GetGroup" for span in calls)
        assert all(span.status.status_code.name == "ERROR" for span in calls)


async def test_deadline_is_passed_on_and_shrinks(kind: str) -> None:
    async with served(kind) as (world, caller, stub):
        await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="a"), timeout=5)
        assert world.domain.left is not None
        assert 0 < world.domain.left < 6  # the header rounds up


async def test_cancelled_stream_ends_its_span(kind: str) -> None:
    async with served(kind) as (world, caller, stub):
        stream = caller.stream(stub.Pull, pb.PullRequest(name="a", version=10**9))
        async for _ in stream:
            break
        await stream.aclose()
        await until(lambda: any(span.status.description == "cancelled" for span in world.spans.get_finished_spans()))


async def test_metrics_count_calls_by_code(kind: str) -> None:
    async with served(kind) as (world, caller, stub):
        with pytest.raises(errors.NotFound):
            await caller.unary(stub.GetGroup, pb.GetGroupRequest(name="missing"))
        labels = {"method": "/tidemill.api.parameters.v1.ParameterService/GetGroup", "code": "NOT_FOUND"}
        await until(lambda: world.telemetry.registry.get_sample_value("tidemill_rpc_handled_total", labels) == 1)


async def test_health_follows_a_dependency_down_and_up(kind: str) -> None:
    up = asyncio.Event()

    async def check() -> None:
        if not up.is_set():
            raise errors.Unavailable("down")

    async with served(kind, check) as (world, caller, _):
        health: Any = health_pb2_grpc.HealthStub(caller.channel)

        async def serving() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        assert not await serving()
        up.set()
        await until(serving)
        assert world.app.ready


async def test_port_in_use_is_a_clear_error(kind: str) -> None:
    async with served(kind) as (world, _, _):
        taken = World(kind, lambda: asyncio.sleep(0))
        object.__setattr__(taken.app.config, "port", world.app.port)
        with pytest.raises(errors.Unavailable, match="in use"):
            await taken.app.start()


async def test_reflection_describes_every_service(kind: str) -> None:
    async with served(kind) as (_, caller, _):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        ask = reflection_pb2.ServerReflectionRequest
        names = [SERVICE.full_name, "grpc.health.v1.Health"]
        requests = [ask(list_services=""), *(ask(file_containing_symbol=name) for name in names)]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
        listed = {service.name for service in answers[0].list_services_response.service}
        assert listed == {*names, "grpc.reflection.v1alpha.ServerReflection"}
        assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers[1:])


async def test_thread_server_serves_on_extra_ports() -> None:
    domain = Domain()
    services = [Service.of(pg.add_ParameterServiceServicer_to_server, ThreadToy(domain), SERVICE)]
    server = ThreadServer(services, observer(ServerConfig(), setup("toy")), threads=1, extra_ports=[0])
    first = await server.start("127.0.0.1", 0)
    try:
        assert first not in server.extra_ports
        for port in (first, *server.extra_ports):
            caller = Caller(f"127.0.0.1:{port}", [SERVICE])
            group = await caller.unary(pg.ParameterServiceStub(caller.channel).GetGroup, pb.GetGroupRequest(name="a"))
            assert group.name == "a"
            await caller.close()
    finally:
        await server.stop(0)


async def test_unknown_method_is_unimplemented(kind: str) -> None:
    async with served(kind) as (_, caller, _), asyncio.timeout(10):
        method: Any = caller.channel.unary_unary("/no.Such/Method")
        with pytest.raises(errors.Unimplemented), translated():
            await method(b"")


@pytest.mark.parametrize("method", ["GetGroup", "Pull", "Push"])
async def test_what_is_no_message_is_the_callers_fault(kind: str, method: str) -> None:
    rubbish = b"\x0a\xff\xff"

    async def many() -> AsyncIterator[bytes]:
        yield rubbish

    async with served(kind) as (_, caller, _stub):
        channel: Any = caller.channel
        path = f"/{SERVICE.full_name}/{method}"

        async def send() -> None:
            with translated():
                if method == "GetGroup":
                    await channel.unary_unary(path)(rubbish)
                elif method == "Pull":
                    await channel.unary_stream(path)(rubbish).read()
                else:
                    await channel.stream_unary(path)(many())

        with pytest.raises(errors.Invalid, match="no message that this method takes"):
            await send()
