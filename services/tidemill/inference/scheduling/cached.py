"""Answers requests from the response cache, and lets the others go their way."""

import time

from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.metrics import Series
from tidemill.inference.responses import Section, digest
from tidemill.inference.scheduling.base import Scheduler
from tidemill.inference.statistics import Statistics


class CachedScheduler(Scheduler):
    """Keeps the answers of a model whose answer depends on the request alone, and of which each request has one.

    Equal requests at the same time may all run.

    Args:
        scheduler: takes the calls that nothing is kept for.
        section: where the version's answers are kept.
        statistics: the version's books.
        series: its metrics.
    """

    def __init__(self, scheduler: Scheduler, section: Section, statistics: Statistics, series: Series) -> None:
        self._scheduler = scheduler
        self.depends = scheduler.depends
        self._section = section
        self._statistics = statistics
        self._series = series

    @property
    def available(self) -> bool:
        """Whether calls for which nothing is kept would run now."""
        return self._scheduler.available

    @property
    def pending(self) -> int:
        """Calls that wait."""
        return self._scheduler.pending

    def infer(self, call: Call) -> Answer:
        """The one answer to `call`, kept or new. Raises TidemillError."""
        key, kept, took = self._look(call)
        if kept is not None:
            return kept
        try:
            answer = self._scheduler.infer(call)
        except TidemillError:
            self._statistics.missed(took)
            raise
        self._keep(key, answer, took)
        return answer

    def submit(self, call: Call, receive: Receive) -> None:
        """Answer `call`, or have it run."""
        key, kept, took = self._look(call)
        if kept is not None:
            receive(kept, True)
            return

        def keep(reply: Answer | TidemillError | None, final: bool) -> None:
            if isinstance(reply, Answer):
                self._keep(key, reply, took)
            elif final:
                self._statistics.missed(took)
            receive(reply, final)

        self._scheduler.submit(call, keep)

    def close(self) -> None:
        """End, and forget what is kept."""
        self._scheduler.close()
        self._section.close()

    def _look(self, call: Call) -> tuple[bytes, Answer | None, int]:
        """The call's key, what is kept for it, and the nanoseconds that this took."""
        begun = time.monotonic_ns()
        key = digest(call)
        kept = self._section.get(key)
        ended = time.monotonic_ns()
        self._series.lookup(kept is not None)
        if kept is not None:
            self._statistics.hit(ended - begun, ended - call.arrived)
        return key, kept, ended - begun

    def _keep(self, key: bytes, answer: Answer, took: int) -> None:
        begun = time.monotonic_ns()
        self._section.put(key, answer)
        self._statistics.missed(took + time.monotonic_ns() - begun)
