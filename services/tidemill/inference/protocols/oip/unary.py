"""One request, one answer."""

import grpc

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Unimplemented
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip.requests import Reader
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.tracing import Tracing
from tidemill.rpc import deadline
from tidemill.telemetry.propagation import TRACEPARENT

Context = grpc.ServicerContext


class Unary:
    """Answers requests for versions that are in use by the caller.

    Args:
        reader, writer: make calls of requests, and messages of answers.
        engine: runs the calls.
        tracing: which requests are recorded.
    """

    def __init__(self, reader: Reader, writer: Writer, engine: Engine, tracing: Tracing) -> None:
        self._reader = reader
        self._writer = writer
        self._engine = engine
        self._tracing = tracing

    def infer(self, loaded: Loaded, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """The answer. Raises TidemillError."""
        if loaded.configuration.decoupled:
            raise Unimplemented(
                "ModelInfer RPC doesn't support models with decoupled transaction policy", reason="DECOUPLED"
            )
        call, form = self._reader.call(
            request, loaded.configuration, expires=deadline.expiry(), alive=context.is_active
        )
        recorded = self._tracing.begin(loaded.version.model, lambda: header(context, TRACEPARENT))
        failed: Exception | None = None
        try:
            if recorded is not None:
                call.trace = recorded.context
                recorded.describe(call)
            answer = self._engine.infer(loaded, call)
            return self._writer.response(loaded, form, answer)
        except Exception as error:
            failed = error
            raise
        finally:
            form.release()
            if recorded is not None:
                recorded.end(failed)


def header(context: Context, name: str) -> str:
    """A text of the call's metadata; "" when it has none of this name."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""
