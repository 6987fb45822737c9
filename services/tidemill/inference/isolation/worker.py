"""Keeps one process of a model running: starts it, serves it, and starts it again when it has crashed."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tidemill.clock import Clock
from tidemill.errors import Invalid, TidemillError, Unavailable
from tidemill.inference.isolation.channel import ChannelClosed
from tidemill.inference.isolation.process import Process
from tidemill.inference.isolation.restarts import Limits, Restarts
from tidemill.inference.isolation.session import Desk, Session

LOG = logging.getLogger(__name__)


class Worker:
    """One process at a time, on a thread of its own: a process dies with the thread that has started it.

    Args:
        model: name, for logs and texts.
        load: has a fresh process load the model.
        desk: answers its questions.
        limits: of it.
        clock: times restarts.
        changed: guards `session` and `busy`, and is notified when they change.
    """

    def __init__(
        self,
        model: str,
        load: Callable[[Session], None],
        desk: Desk,
        limits: Limits,
        clock: Clock,
        changed: threading.Condition,
    ) -> None:
        self.session: Session | None = None
        self.busy = False
        self.took = 0
        self.loaded: dict[str, Any] = {}
        self._model = model
        self._load = load
        self._desk = desk
        self._limits = limits
        self._changed = changed
        self._restarts = Restarts(limits, clock)
        self._pause = 0.0
        self._stop = threading.Event()
        self._first = threading.Event()
        self._refused: TidemillError | None = None
        self._process: Process | None = None
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"process of {model}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id of what can take calls now."""
        session = self.session
        return None if session is None else session.process.pid

    @property
    def retry_after(self) -> float:
        """Seconds after which it may run again."""
        return self._restarts.left

    def start(self) -> None:
        """Begin to start it."""
        self._thread.start()

    def wait_loaded(self) -> None:
        """Wait until it has loaded for the first time.

        Raises:
            Invalid: it cannot load this model.
            TidemillError: it cannot load it now.
        """
        self._first.wait()
        if self._refused is not None:
            raise self._refused

    def ask_to_stop(self) -> None:
        """Begin to end it."""
        self._stop.set()
        with self._guard:
            if self._process is not None:
                self._process.terminate()

    def stop(self) -> None:
        """End it: it is killed when it has not ended by itself in time."""
        self.ask_to_stop()
        self._thread.join(self._limits.grace)
        while self._thread.is_alive():
            with self._guard:
                if self._process is not None:
                    self._process.kill()
            self._thread.join(1)

    def _run(self) -> None:
        while not self._stop.is_set():
            error = self._live()
            if not self._first.is_set():
                self._refused = error
                self._first.set()
                return
            if self._stop.is_set():
                return
            LOG.error(
                "a model's process is gone and will be started again",
                extra={"model": self._model, "error": error.message, "pause_s": self._pause},
            )
            self._stop.wait(self._pause)

    def _live(self) -> TidemillError:
        """One process from its start to its end; what ended it."""
        try:
            process = Process(self._model)
        except Unavailable as unavailable:
            self._pause = self._restarts.crashed()
            return unavailable
        with self._guard:
            self._process = process
        deadline = time.monotonic() + self._limits.start
        session = Session(process, self._limits.memory, self._desk, self._released)
        try:
            if not self._stop.is_set():
                self._load(session)
                self._serve(session, deadline)
        except ChannelClosed:
            LOG.debug("a model's process has ended before it could load", extra={"model": self._model})
        finally:
            self._pause = self._restarts.crashed()
            with self._changed:
                self.session = None
                self._changed.notify_all()
            with self._guard:
                self._process = None
                status = process.reap()
            error = self._cause(session, status, time.monotonic() >= deadline)
            session.end(error)
        return error

    def _serve(self, session: Session, deadline: float) -> None:
        session.serve(lambda: deadline - time.monotonic(), lambda: self._ready(session))

    def _ready(self, session: Session) -> None:
        self._restarts.up()
        self.loaded = session.loaded or {}
        with self._changed:
            self.busy = False
            self.session = session
            self._changed.notify_all()
        self._first.set()

    def _released(self, took: int) -> None:
        with self._changed:
            self.took = took
            self.busy = False
            self._changed.notify_all()

    def _cause(self, session: Session, status: str, late: bool) -> TidemillError:
        if session.failure is not None:
            return session.failure
        if session.loaded is None:
            if late:
                return Unavailable(
                    f"model '{self._model}' did not load within {self._limits.start:g} s", reason="LOAD_TIMEOUT"
                )
            text = f"the process of model '{self._model}' ended with {status} while it loaded"
            return (Unavailable if "SIGKILL" in status else Invalid)(text, reason="MODEL_CRASHED")
        if self._stop.is_set():
            return Unavailable(f"model '{self._model}' was unloaded", reason="UNLOADED")
        return Unavailable(
            f"the process of model '{self._model}' ended with {status} while it ran this request",
            reason="MODEL_CRASHED",
            retry_after=self._limits.first,
        )
