"""The servicer of the Open Inference Protocol: converts, calls, converts."""

import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import grpc

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.inference.calls import Receive
from tidemill.inference.control import ModelControl
from tidemill.inference.engine import Engine
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.protocols.oip import control, descriptions, settings, stream
from tidemill.inference.protocols.oip.plain import Patterns, Plain, write
from tidemill.inference.protocols.oip.regions import SharedMemory
from tidemill.inference.protocols.oip.requests import Reader
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.protocols.oip.unary import Response, Unary, header
from tidemill.inference.repository import Repository
from tidemill.inference.sharedmemory.cudart import Cuda, find
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.statistics import Snapshot
from tidemill.inference.tracing import Tracing
from tidemill.rpc import deadline
from tidemill.rpc.shortcut import Brief, Reply
from tidemill.slots import Slots
from tidemill.telemetry.propagation import TRACEPARENT

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
INFER = f"/{SERVICE.full_name}/ModelInfer"
Context = grpc.ServicerContext
_EXTENSIONS = (
    "classification",
    "sequence",
    "sequence(string_id)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""What works of the protocol's optional parts, by the names that existing servers use for them."""
_CONTROL = ("model_repository", "model_repository(unload_dependents)")
_STRICT = "triton_grpc_error"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this server says it is."""

    name: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may ask for.

    Args:
        largest: most bytes of the tensors of a request or an answer.
        streams: streams at a time: each holds two threads.
        mirror: whether typed requests get typed answers.
    """

    largest: int = 64 << 20
    streams: int = 2
    mirror: bool = False


class OipServicer(pg.GRPCInferenceServiceServicer):
    """The whole protocol.

    Args:
        repository: of the models.
        engine: runs calls.
        identity: who the server says it is.
        ready: whether requests are taken: not any more when the process drains.
        tracing: which requests are recorded.
        logs: what is logged.
        limits: what clients may ask for.
        control: loads and unloads models; None where that is not for clients to ask.
        regions: of shared memory; None where clients share none.
        cuda: finds CUDA, for clients that share memory of GPUs.
        copies: the books that other processes keep of copies of versions, by the version's key.
    """

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        identity: Identity,
        ready: Callable[[], bool],
        *,
        tracing: Tracing,
        logs: LogSettings,
        limits: Limits,
        control: ModelControl | None = None,
        regions: Regions | None = None,
        cuda: Callable[[], Cuda | None] = find,
        copies: Callable[[], Mapping[str, Snapshot]] = dict,
    ) -> None:
        self._repository = repository
        self._engine = engine
        self._identity = identity
        self._ready = ready
        self._tracing = tracing
        self._logs = logs
        self._limits = limits
        self._control = control
        self._copies = copies
        self._memory = SharedMemory(regions, cuda)
        self._reader = Reader(regions, limits.largest)
        self._writer = Writer(limits.mirror)
        self._unary = Unary(self._reader, self._writer, engine, tracing)
        self.brief = Brief(self._is_brief, self._submit, Patterns().read, write)
        self._streams = Slots(limits.streams, "streams", "TOO_MANY_STREAMS", retry_after=1)

    def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """True: it answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether requests are taken."""
        return pb.ServerReadyResponse(ready=self._ready())

    def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a request for this version would run now."""
        return pb.ModelReadyResponse(ready=self._repository.ready(request.name, request.version))

    def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name, release and extensions."""
        identity = self._identity
        extensions = [*_EXTENSIONS]
        if self._control is not None:
            extensions += _CONTROL
        extensions += self._memory.extensions
        return pb.ServerMetadataResponse(name=identity.name, version=identity.release, extensions=extensions)

    def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The signature of a version that runs."""
        loaded, versions = self._repository.describe(request.name, request.version)
        return descriptions.metadata(loaded, versions)

    def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """How a version runs."""
        loaded, _ = self._repository.describe(request.name, request.version)
        return descriptions.configuration(loaded.configuration)

    def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """The books of the versions that run."""
        return descriptions.statistics(self._repository.loaded(request.name, request.version), self._copies())

    def _is_brief(self, request: pb.ModelInferRequest | Plain) -> bool:
        """Whether a request would be answered in a moment."""
        return self._repository.brief(request.model_name, request.model_version)

    def _submit(self, request: pb.ModelInferRequest | Plain, context: Context, reply: Reply) -> bool:
        """Have a request answered, when it would only wait for that."""
        loaded = self._repository.acquire(request.model_name, request.model_version)
        return self._unary.submit(loaded, request, context, reply)

    def ModelInfer(  # type: ignore[override] # a plain request has no message, and its answer is one already
        self, request: pb.ModelInferRequest | Plain, context: Context
    ) -> Response:
        """Run one request."""
        with self._repository.acquire(request.model_name, request.model_version) as loaded:
            return self._unary.infer(loaded, request, context)

    def ModelStreamInfer(
        self, request_iterator: Iterator[pb.ModelInferRequest], context: Context
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """Run requests as they come, and send answers as they are there."""
        with self._streams:
            outbox = stream.Outbox(self._limits.largest)
            if not context.add_callback(outbox.close):
                return
            traceparent = header(context, TRACEPARENT)

            def dispatch(
                request: pb.ModelInferRequest, exchange: stream.Exchange, alive: Callable[[], bool], receive: Receive
            ) -> None:
                self._hand_on(request, exchange, alive, receive, traceparent)

            yield from stream.answers(
                request_iterator,
                outbox,
                dispatch,
                self._writer,
                contextvars.copy_context(),
                strict=header(context, _STRICT) == "true",
            )

    def _hand_on(
        self,
        request: pb.ModelInferRequest,
        exchange: stream.Exchange,
        alive: Callable[[], bool],
        receive: Receive,
        traceparent: str,
    ) -> None:
        loaded = self._repository.acquire(request.model_name, request.model_version)
        exchange.use(loaded)
        call, exchange.form = self._reader.call(request, loaded.configuration, expires=deadline.expiry(), alive=alive)
        recorded = exchange.recorded = self._tracing.begin(loaded.version.model, lambda: traceparent)
        if recorded is not None:
            call.trace = recorded.context
            recorded.describe(call)
        self._engine.stream(loaded, call, receive)

    def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """The known models and what their versions are doing."""
        control.check_repository(request.repository_name)
        return descriptions.index(self._repository.index(request.ready))

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model, or load it anew."""
        return control.load(self._control, request)

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model."""
        return control.unload(self._control, request)

    def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The registered regions."""
        return self._memory.system_status(request.name)

    def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Register a region."""
        self._memory.register_system(request)
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Let go of a region, or of all."""
        self._memory.unregister("system", request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """The registered regions of GPUs."""
        return self._memory.cuda_status(request.name)

    def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Register a region of a GPU."""
        self._memory.register_cuda(request)
        return pb.CudaSharedMemoryRegisterResponse()

    def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Let go of a region of a GPU, or of all."""
        self._memory.unregister("cuda", request.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        """Change trace settings, and tell those in force."""
        return settings.trace(self._tracing, self._repository, request)

    def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        """Change log settings, and tell those in force."""
        return settings.log(self._logs, request)
