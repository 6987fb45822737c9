"""The servicer of the Open Inference Protocol: converts, calls, converts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from opentelemetry import context as otel
from opentelemetry import trace

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import Unimplemented
from tidemill.inference.calls import Call
from tidemill.inference.engine import Engine
from tidemill.inference.inputs import bind, wanted
from tidemill.inference.protocols.oip import convert
from tidemill.inference.repository import Repository
from tidemill.rpc import deadline

EXTENSIONS = ("binary_tensor_data", "parameters")
"""What works here of the protocol's optional parts, by the names that existing servers use for them."""
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
Context = grpc.ServicerContext


def _unserved(method: str) -> Any:
    """A handler that refuses."""

    def refuse(self: object, request: object, context: Context) -> NoReturn:
        raise Unimplemented(
            f"{method} is not offered by this server; ServerMetadata names the extensions that are",
            reason="METHOD_UNSERVED",
            metadata={"method": method},
        )

    return refuse


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this server says it is."""

    name: str
    release: str


class OipServicer(pg.GRPCInferenceServiceServicer):
    """The protocol's core, and the index of the repository. What else it declares is refused as UNIMPLEMENTED.

    Args:
        ready: whether requests are taken: not any more when the process drains.
    """

    def __init__(self, repository: Repository, engine: Engine, identity: Identity, ready: Callable[[], bool]) -> None:
        self._repository = repository
        self._engine = engine
        self._identity = identity
        self._ready = ready

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
        return pb.ServerMetadataResponse(name=identity.name, version=identity.release, extensions=EXTENSIONS)

    def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The signature of a version that runs."""
        loaded, versions = self._repository.describe(request.name, request.version)
        return convert.to_metadata(loaded, versions)

    def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run one request."""
        model = request.model_name
        with self._repository.acquire(model, request.model_version) as loaded:
            inputs = bind(convert.from_inputs(request), loaded.signature, model)
            outputs = wanted(convert.from_outputs(request), loaded.signature, model)
            span = trace.get_current_span()
            call = Call(
                inputs=inputs,
                outputs=outputs,
                id=request.id,
                expires=deadline.expiry(),
                alive=context.is_active,
                trace=otel.get_current() if span.is_recording() else None,
            )
            answer = self._engine.infer(loaded, call)
            return convert.to_response(request, loaded, answer)

    def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """The known models and what their versions are doing."""
        return convert.to_index(self._repository.index(request.ready))

    ModelStreamInfer = _unserved("ModelStreamInfer")
    ModelConfig = _unserved("ModelConfig")
    ModelStatistics = _unserved("ModelStatistics")
    RepositoryModelLoad = _unserved("RepositoryModelLoad")
    RepositoryModelUnload = _unserved("RepositoryModelUnload")
    SystemSharedMemoryStatus = _unserved("SystemSharedMemoryStatus")
    SystemSharedMemoryRegister = _unserved("SystemSharedMemoryRegister")
    SystemSharedMemoryUnregister = _unserved("SystemSharedMemoryUnregister")
    CudaSharedMemoryStatus = _unserved("CudaSharedMemoryStatus")
    CudaSharedMemoryRegister = _unserved("CudaSharedMemoryRegister")
    CudaSharedMemoryUnregister = _unserved("CudaSharedMemoryUnregister")
    TraceSetting = _unserved("TraceSetting")
    LogSettings = _unserved("LogSettings")
