"""What a model's process prints, on its way to the server's log."""

import logging
import threading
import time
from collections.abc import Callable
from typing import IO

LOG = logging.getLogger(__name__)
MAX_LINE = 2000
"""Longest line in bytes; longer ones are cut into several."""
RATE, BURST = 100.0, 1000
"""Lines a second that are logged in the long run, and at once; the others are counted."""


class Allowance:
    """How many lines of a model are logged: a few at once, and not too many in the long run.

    Args:
        model: name of the model, for the log.
        monotonic: seconds that only rise.
    """

    def __init__(self, model: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._monotonic = monotonic
        self._left, self._last = float(BURST), monotonic()
        self._dropped = 0

    def take(self) -> bool:
        """Whether the next line is logged; before it, it is told how many were not."""
        now = self._monotonic()
        self._left = min(BURST, self._left + (now - self._last) * RATE)
        self._last = now
        if self._left < 1:
            self._dropped += 1
            return False
        self._left -= 1
        self.tell_dropped()
        return True

    def tell_dropped(self) -> None:
        """Log how many lines were not logged."""
        if self._dropped:
            LOG.warning("lines that a model printed are left out", extra={"model": self._model, "lines": self._dropped})
            self._dropped = 0


class Output:
    """Logs the lines of a pipe on a thread of its own, until its end.

    Args:
        pipe: what the process prints; closed at the end.
        model: name of the model, for the log.
    """

    def __init__(self, pipe: IO[bytes], model: str) -> None:
        self._pipe = pipe
        self._model = model
        self._allowance = Allowance(model)
        self._thread = threading.Thread(target=self._run, name=f"output of {model}", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the end of the pipe, which a process that was left over may keep open."""
        self._thread.join(timeout)

    def _run(self) -> None:
        with self._pipe:
            while line := self._pipe.readline(MAX_LINE):
                if self._allowance.take():
                    LOG.info("%s", line.decode("utf-8", "replace").rstrip(), extra={"model": self._model})
        self._allowance.tell_dropped()
