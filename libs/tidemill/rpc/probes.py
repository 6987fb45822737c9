"""Threads of their own for health and reflection, so that a server answers when all its others are at work."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_status import rpc_status

from tidemill.errors import Exhausted
from tidemill.rpc.silence import Silence
from tidemill.rpc.status import to_status
from tidemill.slots import Slots

REFLECTIONS = 2
"""Most reflection streams at a time: each holds a thread for as long as it is open."""
REFLECTION_SILENCE = 10.0
"""Seconds after which a reflection stream that asks nothing is ended."""
ANSWERING = 2
"""Threads that no stream holds: for health, and to refuse calls."""
MORE_CALLS = 64
"""Calls of these kinds that a server admits when it admits no others."""


class Probes:
    """Gives handlers the threads for probes.

    Args:
        silence: seconds after which a reflection stream that asks nothing is ended.
    """

    def __init__(self, silence: float = REFLECTION_SILENCE) -> None:
        self._pool = ThreadPoolExecutor(REFLECTIONS + ANSWERING, thread_name_prefix="grpc-probe")
        self._silence = Silence(silence)
        self._reflections = Slots(REFLECTIONS, "reflection streams", "TOO_MANY_STREAMS", retry_after=1)

    def handler(self, handler: Any) -> Any:
        """The handler of a method of health or reflection, in these threads."""
        if handler.request_streaming:
            make: Any = grpc.stream_stream_rpc_method_handler
            behaviour = self._bounded(handler.stream_stream)
        elif handler.response_streaming:  # grpcio's health.Watch calls back, and so holds no thread
            make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        return make(self.here(behaviour), handler.request_deserializer, handler.response_serializer)

    def here(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """`behaviour`, run in these threads."""

        def handle(*arguments: Any) -> Any:
            return behaviour(*arguments)

        # Both are read by grpcio: the second by `_select_thread_pool_for_behavior`.
        marked: Any = handle
        marked.experimental_non_blocking = getattr(behaviour, "experimental_non_blocking", False)
        marked.experimental_thread_pool = self._pool
        return handle

    def close(self) -> None:
        """End the threads."""
        self._silence.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bounded(self, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handle(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with self._reflections:
                    yield from behaviour(self._silence.watch(requests, context), context)
            except Exhausted as error:
                context.abort_with_status(rpc_status.to_status(to_status(error)))

        return handle
