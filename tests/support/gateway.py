"""A gateway in this process, over real services or a scripted one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from google.protobuf.empty_pb2 import Empty
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as pg
from tidemill.gateway.app import build
from tidemill.gateway.config import GatewayConfig
from tidemill.gateway.server import HttpServer
from tidemill.rpc.app import App, observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import AioServer, Service
from tidemill.telemetry.setup import setup

NOWHERE = "127.0.0.1:9"
"""Where nobody listens."""


@dataclass
class Gateway:
    """A running gateway."""

    app: App
    spans: InMemorySpanExporter

    @property
    def ports(self) -> dict[str, int]:
        """Its HTTP ports: `management`, `oip` and `tfs`."""
        assert isinstance(self.app.server, HttpServer)
        return self.app.server.ports

    def url(self, port: str = "management") -> str:
        """Where one of its ports answers."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def client(self, port: str = "management", **options: Any) -> httpx.AsyncClient:
        """A client of one of its ports."""
        return httpx.AsyncClient(base_url=self.url(port), timeout=20, trust_env=False, **options)


def settings(**others: Any) -> GatewayConfig:
    """Settings of a gateway on free ports; services whose address is not given are not there."""
    given: dict[str, Any] = {
        "port": 0,
        "ops_port": 0,
        "oip_port": 0,
        "tfs_port": 0,
        "registry_address": NOWHERE,
        "artifacts_address": NOWHERE,
        "training_address": NOWHERE,
        "inference_address": NOWHERE,
        **others,
    }
    return GatewayConfig(**given)


@asynccontextmanager
async def serve_gateway(**others: Any) -> AsyncIterator[Gateway]:
    """A gateway with such settings while the block runs."""
    app = build(settings(**others))
    spans = InMemorySpanExporter()
    app.telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
    await app.start()
    try:
        yield Gateway(app, spans)
    finally:
        await app.stop(grace=1)


class ScriptedTraining(pg.TrainingServiceServicer):
    """A training service that does what the test says.

    Attributes:
        error: raised by every call, when set.
        requests: what arrived, in order.
        metadata: the headers of the last call.
        entered, release: a call about `jobs/slow` sets the first and waits for the second.
        jobs, lines: what is streamed; None ends a stream, an error fails it.
        cancelled: set when a call is given up.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.error: Exception | None = None
        self.requests: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.explanation = pb.JobExplanation()
        self.jobs: asyncio.Queue[pb.Job | errors.TidemillError | None] = asyncio.Queue()
        self.lines: asyncio.Queue[pb.LogLine | errors.TidemillError | None] = asyncio.Queue()

    async def _arrive(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        if self.error is not None:
            raise self.error
        if getattr(request, "name", "") == "jobs/slow":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=f"jobs/{request.job_id or 'new'}", spec=request.spec, etag='"1"')

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=request.name, state=pb.Job.STATE_RUNNING, etag='"7"')

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        await self._arrive(request, context)
        return pb.ListJobsResponse(jobs=[pb.Job(name="jobs/a")], next_page_token="more")

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=request.name, state=pb.Job.STATE_CANCELLING)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=request.name, state=pb.Job.STATE_PAUSING)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=request.name, state=pb.Job.STATE_PENDING)

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> Empty:
        await self._arrive(request, context)
        return Empty()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.Job]:
        await self._arrive(request, context)
        async for job in self._drain(self.jobs):
            yield job

    async def ResizeJob(self, request: pb.ResizeJobRequest, context: Any) -> pb.Job:
        await self._arrive(request, context)
        return pb.Job(name=request.name, resize=pb.Resize(workers=request.workers, shards=request.shards))

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Any) -> pb.JobExplanation:
        await self._arrive(request, context)
        return self.explanation

    async def StreamEvents(self, request: pb.StreamEventsRequest, context: Any) -> AsyncIterator[pb.JobEvent]:
        await self._arrive(request, context)
        yield pb.JobEvent(state=pb.Job.STATE_PENDING)

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.LogLine]:
        await self._arrive(request, context)
        async for line in self._drain(self.lines):
            yield line

    async def ListCatalogue(self, request: pb.ListCatalogueRequest, context: Any) -> pb.Catalogue:
        await self._arrive(request, context)
        return pb.Catalogue(models=[pb.CatalogueEntry(name="mlp", description="A perceptron.")])

    async def _drain(self, queue: "asyncio.Queue[Any]") -> AsyncIterator[Any]:
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


@asynccontextmanager
async def serve_training() -> AsyncIterator[tuple[ScriptedTraining, str]]:
    """A scripted training service and its address."""
    scripted = ScriptedTraining()
    config = ServerConfig()
    telemetry = setup("training")
    service = Service.of(
        pg.add_TrainingServiceServicer_to_server, scripted, pb.DESCRIPTOR.services_by_name["TrainingService"]
    )
    app = App("training", config, telemetry, AioServer([service], observer(config, telemetry)))
    await app.start()
    try:
        yield scripted, app.address
    finally:
        await app.stop(grace=0)
