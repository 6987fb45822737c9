"""An inference service that answers what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.rpc.app import App, observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.methods import methods
from tidemill.rpc.server import AioServer, Service
from tidemill.telemetry.setup import setup

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
RESPONSES = {method.name: method.response for method in methods(SERVICE)}
STREAM = "ModelStreamInfer"


class ScriptedInference:
    """All RPCs of the protocol.

    Attributes:
        answers: RPC -> its response, an error, or a function of the request; an empty response without.
        streamed: responses of a stream, in order; an error ends it, an event is waited for.
        requests: what arrived, in order.
        metadata: headers of the last call.
        cancelled: set when a stream is given up.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.answers: dict[str, Any] = {}
        self.streamed: list[pb.ModelStreamInferResponse | Exception | asyncio.Event] = []
        self.requests: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.cancelled = asyncio.Event()

    def _arrive(self, rpc: str, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        answer = self.answers.get(rpc)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return RESPONSES[rpc]() if answer is None else answer

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answers each request with all of `streamed`."""
        try:
            async for request in requests:
                self._arrive(STREAM, request, context)
                for item in self.streamed:
                    if isinstance(item, asyncio.Event):
                        await item.wait()
                    elif isinstance(item, Exception):
                        raise item
                    else:
                        yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def _unary(rpc: str) -> Callable[..., Any]:
    async def answer(self: ScriptedInference, request: Any, context: Any) -> Any:
        return self._arrive(rpc, request, context)

    return answer


for _name in RESPONSES:
    if _name != STREAM:
        setattr(ScriptedInference, _name, _unary(_name))


@asynccontextmanager
async def serve_inference(max_message: int = 4 << 20) -> AsyncIterator[tuple[ScriptedInference, str]]:
    """A scripted inference service and its address."""
    scripted = ScriptedInference()
    config = ServerConfig()
    telemetry = setup("inference")
    add: Any = pg.add_GRPCInferenceServiceServicer_to_server
    service = Service.of(add, scripted, SERVICE)
    server = AioServer([service], observer(config, telemetry), max_message=max_message)
    app = App("inference", config, telemetry, server)
    await app.start()
    try:
        yield scripted, app.address
    finally:
        await app.stop(grace=0)
