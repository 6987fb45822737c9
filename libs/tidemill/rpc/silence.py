"""Ends calls whose client says nothing: each holds a thread for as long as it is waited for."""

import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import grpc

T = TypeVar("T")
SILENCE = 30.0
"""Seconds, unless a server says otherwise."""


class _Reader:
    """One call that reads requests."""

    __slots__ = ("context", "since")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.since: float | None = None
        """Monotonic time since when it waits for a message; none = it does not."""


class Silence:
    """Cancels calls that wait too long for the next message of their client. One thread watches all of them.

    Args:
        seconds: longest time between two messages, while the server waits for one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._readers: set[_Reader] = set()
        self._changed = threading.Condition()
        self._watching = False
        self._closed = False

    def watch(self, requests: Iterator[T], context: grpc.ServicerContext) -> Iterator[T]:
        """The same requests; the call is cancelled, and `grpc.RpcError` raised, when the next one takes too long."""
        reader = _Reader(context)
        self._add(reader)
        try:
            while True:
                reader.since = time.monotonic()
                try:
                    request = next(requests)
                except StopIteration:
                    return
                reader.since = None
                yield request
        finally:
            with self._changed:
                self._readers.discard(reader)

    def close(self) -> None:
        """Watch no longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _add(self, reader: _Reader) -> None:
        with self._changed:
            self._readers.add(reader)
            if not self._watching and not self._closed:
                self._watching = True
                threading.Thread(target=self._run, name="grpc-silence", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed or not self._readers:
                    self._watching = False
                    return
                waiting = [(reader.since, reader) for reader in self._readers]
            now = time.monotonic()
            pause = self._seconds
            for since, reader in waiting:
                if since is None:
                    continue
                left = since + self._seconds - now
                if left <= 0:
                    reader.context.cancel()
                else:
                    pause = min(pause, left)
            with self._changed:
                if not self._closed:
                    # Whoever comes meanwhile is due later than this.
                    self._changed.wait(pause)
