"""The protocol as a front serves it: by a copy of the model where there is one, else by the first process."""

from typing import Any

import grpc

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.fronts.mirror import Mirror
from tidemill.inference.fronts.relay import Relay
from tidemill.inference.protocols.oip.memory import REGION
from tidemill.inference.protocols.oip.plain import Patterns, Plain, write
from tidemill.inference.protocols.oip.unary import Response, Unary
from tidemill.inference.tracing import Tracing
from tidemill.rpc.shortcut import Brief, Reply

Context = grpc.ServicerContext


class FrontServicer:
    """All methods but `ModelInfer` are the relay's.

    Args:
        mirror: the copies.
        unary: answers requests for them.
        relay: has the first process answer.
        tracing: tells of which models so many requests are to be recorded: the first process counts.
    """

    def __init__(self, mirror: Mirror, unary: Unary, relay: Relay, tracing: Tracing) -> None:
        self._mirror = mirror
        self._unary = unary
        self._relay = relay
        self._tracing = tracing

        self.brief = Brief(self._is_brief, self._submit, Patterns().read, write)

    def __getattr__(self, method: str) -> Any:
        return getattr(self._relay, method)

    def _is_brief(self, request: pb.ModelInferRequest | Plain) -> bool:
        """Whether a request would be answered here, in a moment."""
        return self._mirror.brief(request.model_name, request.model_version) and not self._elsewhere(request)

    def _submit(self, request: pb.ModelInferRequest | Plain, context: Context, reply: Reply) -> bool:
        """Have a request answered here, when it would only wait for that."""
        if self._elsewhere(request):
            return False
        loaded = self._mirror.acquire(request.model_name, request.model_version)
        return loaded is not None and self._unary.submit(loaded, request, context, reply)

    def ModelInfer(self, request: pb.ModelInferRequest | Plain, context: Context) -> Response:
        """Run one request, here or there."""
        loaded = self._mirror.acquire(request.model_name, request.model_version)
        if loaded is None:
            return self._passed_on(request, context)
        with loaded:
            if self._elsewhere(request):
                return self._passed_on(request, context)
            return self._unary.infer(loaded, request, context)

    def _passed_on(self, request: pb.ModelInferRequest | Plain, context: Context) -> Response:
        message = request.message() if isinstance(request, Plain) else request
        return self._relay.unary("ModelInfer", message, context)  # type: ignore[no-any-return]

    def _elsewhere(self, request: pb.ModelInferRequest | Plain) -> bool:
        return _shares_memory(request) or self._tracing.counts(request.model_name)


def _shares_memory(request: pb.ModelInferRequest | Plain) -> bool:
    """Whether tensors lie in memory that the first process alone knows."""
    if isinstance(request, Plain):
        return False
    return any(tensor.parameters and REGION in tensor.parameters for tensor in request.inputs) or any(
        output.parameters and REGION in output.parameters for output in request.outputs
    )
