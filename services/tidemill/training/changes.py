"""Lets many tasks wait for changes of jobs, however they came about."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

ALL = ""
"""Stands for every job."""


class Changes:
    """Events that are set when a job changes. Who clears its event, then reads, acts and waits again, misses none."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False
        """Whether waiting has no use any more, because this process ends."""

    @contextmanager
    def of(self, job: str) -> Iterator[asyncio.Event]:
        """An event of one's own, set whenever the job with this id changes; for `ALL`, when any does in the store."""
        event = asyncio.Event()
        self._waiting.setdefault(job, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[job]
            events.discard(event)
            if not events:
                del self._waiting[job]

    def touch(self, job: str) -> None:
        """The job with this id has changed in the store."""
        self.stir(job)
        self.stir(ALL)

    def stir(self, job: str) -> None:
        """Something about the job with this id has changed that is not stored."""
        for event in self._waiting.get(job, ()):
            event.set()

    def touch_all(self) -> None:
        """Any job may have changed."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def close(self) -> None:
        """Wake everybody for the last time."""
        self.closed = True
        self.touch_all()
