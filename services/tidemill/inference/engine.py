"""Has calls run on loaded versions: the one way by which every protocol, and every model that calls others, goes."""

import time
from collections.abc import Iterable

from opentelemetry import trace

from tidemill.errors import Exhausted, TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.loaded import Loaded
from tidemill.telemetry import attributes


class Engine:
    """Has calls run. Safe to use from any thread.

    Args:
        tracer: makes the spans.
        largest_answer: most bytes that the outputs of an answer may have together.
    """

    def __init__(self, tracer: trace.Tracer, largest_answer: int) -> None:
        self._tracer = tracer
        self._largest_answer = largest_answer

    def infer(self, loaded: Loaded, call: Call, *, inner: bool = False) -> Answer:
        """The one answer to `call`; blocks until it is there.

        Args:
            loaded: what shall run; in use by the caller.
            inner: whether the answer stays in this process, and so may be larger than a message.

        Raises:
            DeadlineExceeded: nobody waits for the answer any more.
            Exhausted: the queue is full, or the answer is larger than a message may be.
            TidemillError: it failed.
        """
        first = loaded.first_time()
        started = time.time_ns() if first else 0
        answer = loaded.scheduler.infer(call)
        if not inner:
            self._check_size(answer.outputs.values())
        if first:
            self._first_prediction(loaded, call, started)
        return answer

    def stream(self, loaded: Loaded, call: Call, receive: Receive) -> None:
        """Have `call` run; its replies go to `receive`, the last one exactly once. May block while it runs."""
        first = loaded.first_time()
        started = time.time_ns() if first else 0

        def checked(reply: Answer | TidemillError | None, final: bool) -> None:
            nonlocal first
            if isinstance(reply, Answer):
                if first:
                    first = False
                    self._first_prediction(loaded, call, started)
                try:
                    self._check_size(reply.outputs.values())
                except Exhausted as error:
                    reply = error
            receive(reply, final)

        loaded.scheduler.submit(call, checked)

    def _check_size(self, arrays: Iterable[Array]) -> None:
        size = 0
        for array in arrays:
            size += array.nbytes
        if size > self._largest_answer:
            raise Exhausted(
                f"the outputs have {size} bytes; an answer may have {self._largest_answer}", reason="ANSWER_TOO_LARGE"
            )

    def _first_prediction(self, loaded: Loaded, call: Call, started: int) -> None:
        """A span in the trace of the version, which so runs from its job to the first prediction."""
        request = trace.get_current_span(call.trace).get_span_context() if call.trace is not None else None
        span = self._tracer.start_span(
            attributes.SPAN_FIRST_PREDICTION,
            context=loaded.trace,
            links=[trace.Link(request)] if request is not None and request.is_valid else [],
            attributes={attributes.MODEL: loaded.version.model, attributes.MODEL_VERSION: loaded.label},
            start_time=started,
        )
        span.end()
