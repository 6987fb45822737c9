"""One request, one answer."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeAlias

import grpc

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Internal, TidemillError, Unimplemented
from tidemill.inference.calls import Answer, Call
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip.plain import Plain
from tidemill.inference.protocols.oip.requests import Form, Reader
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.tracing import Recorded, Tracing
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
        call, form = self._read(loaded, request, context)
        recorded = self._record(loaded, call, context)
        failed: Exception | None = None
        try:
            return self._write(loaded, request, form, self._engine.infer(loaded, call))
        except Exception as error:
            failed = error
            raise
        finally:
            form.release()
            if recorded is not None:
                recorded.end(failed)

    def submit(
        self, loaded: Loaded, request: pb.ModelInferRequest | Plain, context: Context, reply: Callable[..., None]
    ) -> bool:
        """Have the request answered, if its scheduler queues it; the use of the version ends with the answer.

        Args:
            loaded: what shall run, in use.
            request, context: of the call.
            reply: takes the answer, or the error.

        Returns:
            Whether somebody replies.

        Raises:
            TidemillError: then nobody does.
        """
        with ExitStack() as use:
            use.enter_context(loaded)
            if not loaded.scheduler.queues:
                return False
            call, form = self._read(loaded, request, context)
            recorded = self._record(loaded, call, context)
            used = use.pop_all()

        def receive(answer: Answer | TidemillError | None, final: bool) -> None:
            failed: Exception | None = None
            response: Response | None = None
            with used:
                try:
                    if not isinstance(answer, Answer):
                        raise answer or Internal("the model gave no answer", reason="NO_ANSWER")
                    response = self._write(loaded, request, form, answer)
                except Exception as error:  # noqa: BLE001 it is the caller's answer
                    failed = error
                form.release()
                if recorded is not None:
                    recorded.end(failed)
                reply(response, failed)

        self._engine.stream(loaded, call, receive)
        return True

    def _read(self, loaded: Loaded, request: pb.ModelInferRequest | Plain, context: Context) -> tuple[Call, Form]:
        expires = deadline.expiry()
        if not isinstance(request, Plain):
            return self._reader.call(request, loaded.configuration, expires=expires, alive=context.is_active)
        known = request.call(loaded, expires, context.is_active)
        if known is not None:
            return known, Form(request.id)
        call, form = self._reader.call(
            request.message(), loaded.configuration, expires=expires, alive=context.is_active
        )
        request.learn(loaded, call)
        return call, form

    def _write(self, loaded: Loaded, request: pb.ModelInferRequest | Plain, form: Form, answer: Answer) -> Response:
        plain = request.response(loaded, answer) if isinstance(request, Plain) else None
        return self._writer.response(loaded, form, answer) if plain is None else plain

    def _record(self, loaded: Loaded, call: Call, context: Context) -> Recorded | None:
        recorded = self._tracing.begin(loaded.version.model, lambda: header(context, TRACEPARENT))
        if recorded is not None:
            call.trace = recorded.context
            recorded.describe(call)
        return recorded


def header(context: Context, name: str) -> str:
    """A text of the call's metadata; "" when it has none of this name."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""
