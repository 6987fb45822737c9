"""Inference from Python, over the Open Inference Protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from opentelemetry import trace

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import DataLoss
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller
from tidemill.tensors import codec, dtypes

Array = np.ndarray[Any, Any]

MAX_MESSAGE = 64 << 20
"""Largest request and answer, in bytes: what the server takes by default."""


@dataclass(frozen=True, slots=True)
class InferResult:
    """What a model said.

    Args:
        model_name, model_version: which model ran; the version is a number, also when an alias was asked for.
        id: the mark of the request.
        outputs: by name; BF16 comes as float32, BYTES as object arrays of `bytes`, others read-only.
    """

    model_name: str
    model_version: str
    id: str
    outputs: dict[str, Array]


class InferenceClient:
    """Calls an inference server; errors are those of `tidemill.errors`.

    Args:
        address: `host:port` of the server.
        tracer: makes client spans inside of a recorded span.
        timeout: default seconds of a call.
        max_message: largest request and answer, in bytes.
    """

    def __init__(
        self,
        address: str,
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        self._caller = Caller(address, [service], tracer=tracer, timeout=timeout, max_message=max_message)
        self._stub: Any = pg.GRPCInferenceServiceStub(self._caller.channel)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        id: str = "",
        timeout: float | None = None,
    ) -> InferResult:
        """What `model` makes of `inputs`.

        Args:
            model: its name.
            inputs: arrays by name, of the types that the model wants; arrays of strings or `bytes` become BYTES.
            version: a number or an alias; "" lets the server choose.
            outputs: those wanted, all by default.
            id: a mark that comes back with the answer.
            timeout: seconds, instead of the client's default.

        Raises:
            NotFound: there is no such model or version.
            Invalid: the inputs are not what the model takes.
            Unavailable: the server, or this version, is not ready.
        """
        request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
        for name, array in inputs.items():
            kind = dtypes.of(array)
            request.inputs.add(name=name, datatype=kind.name, shape=array.shape)
            request.raw_input_contents.append(codec.encode(array, kind))
        for name in outputs:
            request.outputs.add(name=name)
        return _result(await self.infer_message(request, timeout=timeout))

    async def infer_message(
        self, request: pb.ModelInferRequest, *, timeout: float | None = None
    ) -> pb.ModelInferResponse:
        """The answer to a request message, both untouched: for front doors that speak the protocol themselves."""
        response: pb.ModelInferResponse = await self._caller.unary(self._stub.ModelInfer, request, timeout=timeout)
        return response

    async def live(self) -> bool:
        """Whether the server answers."""
        return bool((await self._caller.unary(self._stub.ServerLive, pb.ServerLiveRequest())).live)

    async def ready(self) -> bool:
        """Whether the server takes requests."""
        return bool((await self._caller.unary(self._stub.ServerReady, pb.ServerReadyRequest())).ready)

    async def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a request for this model and version would run now; False for unknown ones."""
        request = pb.ModelReadyRequest(name=model, version=version)
        return bool((await self._caller.unary(self._stub.ModelReady, request)).ready)

    async def server_metadata(self) -> pb.ServerMetadataResponse:
        """Name, release and extensions of the server."""
        answer: pb.ServerMetadataResponse = await self._caller.unary(
            self._stub.ServerMetadata, pb.ServerMetadataRequest()
        )
        return answer

    async def metadata(self, model: str, version: str = "") -> pb.ModelMetadataResponse:
        """Inputs, outputs, platform and loaded versions of a model. Raises as `infer`."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        answer: pb.ModelMetadataResponse = await self._caller.unary(self._stub.ModelMetadata, request)
        return answer

    async def index(self, *, only_ready: bool = False) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """The server's models and versions: the state of each, and why it is not READY."""
        request = pb.RepositoryIndexRequest(ready=only_ready)
        return list((await self._caller.unary(self._stub.RepositoryIndex, request)).models)

    async def close(self) -> None:
        """Close the channel."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _result(response: pb.ModelInferResponse) -> InferResult:
    """Raises DataLoss when the server left out what its outputs are made of."""
    raw = response.raw_output_contents
    if len(raw) != len(response.outputs):
        raise DataLoss("the server answered without raw_output_contents for every output", reason="RAW_MISSING")
    outputs = {
        output.name: codec.decode(dtypes.parse(output.datatype), output.shape, data)
        for output, data in zip(response.outputs, raw, strict=True)
    }
    return InferResult(response.model_name, response.model_version, response.id, outputs)
