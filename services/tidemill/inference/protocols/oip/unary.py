"""One request, one answer."""

from typing import TypeAlias

import grpc

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Unimplemented
from tidemill.inference.calls import Answer, Call
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip.plain import Plain
from tidemill.inference.protocols.oip.requests import Form, Reader
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.tracing import Tracing
from tidemill.rpc import deadline
from tidemill.telemetry.propagation import TRACEPARENT

Context = grpc.ServicerContext
Response: TypeAlias = pb.ModelInferResponse | bytes
"""An answer, perhaps serialized already."""


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

    def infer(self, loaded: Loaded, request: pb.ModelInferRequest | Plain, context: Context) -> Response:
        """The answer. Raises TidemillError."""
        if loaded.configuration.decoupled:
            raise Unimplemented(
                "ModelInfer RPC doesn't support models with decoupled transaction policy", reason="DECOUPLED"
            )
        expires = deadline.expiry()
        if isinstance(request, Plain):
            known = request.call(loaded, expires, context.is_active)
            if known is not None:
                return self._plain(loaded, request, known, context)
            plain, request = request, request.message()
        else:
            plain = None
        call, form = self._reader.call(request, loaded.configuration, expires=expires, alive=context.is_active)
        if plain is not None:
            plain.learn(loaded, call)
        try:
            return self._writer.response(loaded, form, self._answer(loaded, call, context))
        finally:
            form.release()

    def _plain(self, loaded: Loaded, request: Plain, call: Call, context: Context) -> Response:
        answer = self._answer(loaded, call, context)
        return request.response(loaded, answer) or self._writer.response(loaded, Form(request.id), answer)

    def _answer(self, loaded: Loaded, call: Call, context: Context) -> Answer:
        recorded = self._tracing.begin(loaded.version.model, lambda: header(context, TRACEPARENT))
        if recorded is None:
            return self._engine.infer(loaded, call)
        call.trace = recorded.context
        recorded.describe(call)
        failed: Exception | None = None
        try:
            return self._engine.infer(loaded, call)
        except Exception as error:
            failed = error
            raise
        finally:
            recorded.end(failed)


def header(context: Context, name: str) -> str:
    """A text of the call's metadata; "" when it has none of this name."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""
