"""Readiness from dependencies: checked again and again, so that health tells the truth and recovers by itself."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import Gauge

from tidemill import errors
from tidemill.clock import Clock
from tidemill.telemetry import attributes
from tidemill.telemetry.setup import Telemetry
from tidemill.telemetry.startup import StartUp

LOG = logging.getLogger(__name__)
Check = Callable[[], Awaitable[None]]


class HealthMonitor:
    """Calls every check in turn and tells when the answer to "can we serve?" changes.

    Args:
        checks: name of a dependency -> coroutine that raises `TidemillError` when it is not usable.
        changed: called with the new answer.
        interval: seconds between two rounds; a fifth of it while something is down.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        changed: Callable[[bool], Awaitable[None]],
        telemetry: Telemetry,
        clock: Clock,
        *,
        interval: float = 5.0,
        timeout: float = 3.0,
    ) -> None:
        self._checks = dict(checks)
        self._changed = changed
        self._clock = clock
        self._interval = interval
        self._timeout = timeout
        self._up = Gauge(
            attributes.METRIC_DEPENDENCY_UP, "Whether a dependency answers.", ["name"], registry=telemetry.registry
        )
        self._start_up = StartUp(clock)
        self._down: dict[str, int] = {}
        """The level at which each dependency that is down was reported."""
        self.ready = False
        self._withdrawn = False

    async def withdraw(self) -> None:
        """Say no from now on, whatever the checks say."""
        self._withdrawn = True
        self.ready = False
        await self._changed(False)

    async def run(self) -> None:
        """Check for ever."""
        first = True
        while True:
            results = await asyncio.gather(*(self._check(name) for name in self._checks))
            ready = all(results) and not self._withdrawn
            if first or ready != self.ready:
                self.ready = ready
                await self._changed(ready)
            first = False
            await self._clock.sleep(self._interval if ready else self._interval / 5)

    async def _check(self, name: str) -> bool:
        try:
            await asyncio.wait_for(self._checks[name](), self._timeout)
        except (errors.TidemillError, TimeoutError) as error:
            if (level := self._start_up.level) > self._down.get(name, logging.NOTSET):
                LOG.log(level, "dependency is down", extra={"dependency": name, "error": str(error) or "timeout"})
                self._down[name] = level
            self._up.labels(name).set(0)
            return False
        if self._down.pop(name, None) is not None:
            LOG.info("dependency is back", extra={"dependency": name})
        self._up.labels(name).set(1)
        return True
