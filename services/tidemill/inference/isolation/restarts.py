"""When a process that has crashed is started again."""

from dataclasses import dataclass

from tidemill.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a model's process.

    Args:
        memory: most bytes of shared memory of each process, both directions together.
        start: seconds that loading may take.
        grace: seconds to end in when the model is unloaded, before it is killed.
        first, longest: seconds before it is started again after the first crash, and at most; they double in between.
        settled: seconds after which a crash counts as the first one again.
    """

    memory: int = 1 << 30
    start: float = 300.0
    grace: float = 10.0
    first: float = 0.1
    longest: float = 30.0
    settled: float = 60.0


class Restarts:
    """The pauses between crashes and restarts: exponential, and short again after a good time."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._pause = limits.first
        self._up: float | None = None
        self._due = 0.0

    def up(self) -> None:
        """The process can run the model from now on."""
        self._up = self._clock.monotonic()

    def crashed(self) -> float:
        """The process is gone; seconds to wait before the next one is started."""
        now = self._clock.monotonic()
        if self._up is not None and now - self._up >= self._limits.settled:
            self._pause = self._limits.first
        self._up = None
        pause = self._pause
        self._pause = min(self._limits.longest, 2 * pause)
        self._due = now + pause
        return pause

    @property
    def left(self) -> float:
        """Seconds until the next start, and never quite none: starting takes time too."""
        return max(0.1, self._due - self._clock.monotonic())
