"""A version in a runtime, shared by the requests that use it."""

import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from opentelemetry.context import Context

from tidemill.inference.configuration import Configuration
from tidemill.inference.desired import Version
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.scheduling.base import Scheduler
from tidemill.inference.statistics import Statistics


class Loaded:
    """A loaded version, which is closed when it is retired and the last request that uses it has ended.

    As a context manager it ends one use that `acquire` began.

    Args:
        version: which it is.
        configuration: how it is run; its signature is that of requests.
        runtime: where it runs; None for an ensemble, which runs others.
        scheduler: takes its calls.
        statistics: its books.
        trace: context of the span that loaded it; its first prediction joins that trace.
    """

    def __init__(
        self,
        version: Version,
        configuration: Configuration,
        runtime: Runtime | None,
        scheduler: Scheduler,
        statistics: Statistics,
        trace: Context,
    ) -> None:
        self.version = version
        self.configuration = configuration
        self.runtime = runtime
        self.scheduler = scheduler
        self.statistics = statistics
        self.signature = configuration.signature
        self.trace = trace
        self.label = str(version.number)
        self.key = secrets.token_hex(8)
        """Tells it from every other version that was or will be loaded, also of the same number."""
        self.copied = False
        """Whether other processes may hold copies of it."""
        self._lock = threading.Lock()
        self._users = 0
        self._idle: Callable[[], None] | None = None
        self._fresh = True

    @property
    def devices(self) -> tuple[str, ...]:
        """On what it really runs, the preferred first."""
        return self.runtime.devices if self.runtime is not None else ()

    @property
    def ready(self) -> bool:
        """Whether its runtime takes calls now: a process of its own may have crashed, or a model say no. May block."""
        return self.runtime is None or self.runtime.ready

    def acquire(self) -> bool:
        """Begin a use; False when it is retired."""
        with self._lock:
            if self._idle is not None:
                return False
            self._users += 1
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            idle = self._idle if self._users == 0 else None
        if idle is not None:
            idle()

    def retire(self, idle: Callable[[], None]) -> None:
        """Take no new uses; `idle` is called once, from any thread, when the last use has ended."""
        with self._lock:
            self._idle = idle
            busy = self._users > 0
        if not busy:
            idle()

    def close(self) -> None:
        """Free what it holds. Nobody uses it any more."""
        self.scheduler.close()
        if self.runtime is not None:
            self.runtime.close()

    def first_time(self) -> bool:
        """True for exactly one caller."""
        if not self._fresh:
            return False
        with self._lock:
            fresh, self._fresh = self._fresh, False
        return fresh
