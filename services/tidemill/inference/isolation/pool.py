"""The processes of one model, and whose turn it is."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.clock import Clock, SystemClock
from tidemill.errors import Cancelled, DeadlineExceeded, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call
from tidemill.inference.isolation.channel import ChannelClosed
from tidemill.inference.isolation.package import Package
from tidemill.inference.isolation.restarts import Limits
from tidemill.inference.isolation.session import Desk, Request, Session
from tidemill.inference.isolation.worker import Worker

LOG = logging.getLogger(__name__)
_LOOK = 0.5
"""Seconds after which a waiting thread looks whether its caller is still there."""


class Pool:
    """Processes that run the same model, each one batch at a time. Safe to use from any thread.

    Args:
        model: name, for logs and texts.
        program: module of the program that runs the model in the process; see `child.py`.
        payloads: for each process, what the program is told.
        files: of the model, by path.
        desk: answers the questions of the processes.
        limits: of each of them.
        clock: times restarts.

    Raises:
        Invalid: the model cannot be loaded.
        TidemillError: it cannot be loaded now.
    """

    def __init__(
        self,
        model: str,
        program: str,
        payloads: Sequence[Mapping[str, Any]],
        files: Mapping[str, bytes],
        desk: Desk,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._closed = False
        limits = limits or Limits()
        clock = clock or SystemClock()
        self._package = _package(files)

        def loading(payload: Mapping[str, Any]) -> Callable[[Session], None]:
            return lambda session: session.load(
                program, payload, self._package.descriptor, [list(entry) for entry in self._package.entries]
            )

        self._workers = [Worker(model, loading(payload), desk, limits, clock, self._changed) for payload in payloads]
        for worker in self._workers:
            worker.start()
        try:
            for worker in self._workers:
                worker.wait_loaded()
        except BaseException:
            self.close()
            raise

    @property
    def loaded(self) -> Mapping[str, Any]:
        """What the program said when it had loaded the model."""
        return self._workers[0].loaded

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that can take calls."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]

    @property
    def shared_bytes(self) -> int:
        """Shared memory of all processes."""
        return sum(session.bytes for worker in self._workers if (session := worker.session) is not None)

    def sessions(self) -> list[Session]:
        """Connections to the processes that can take calls."""
        return [session for worker in self._workers if (session := worker.session) is not None]

    def begin(
        self, requests: Sequence[Request], calls: Sequence[Call], member: int | None = None
    ) -> tuple[Session, Worker, int]:
        """Have a free process run these as one batch, as soon as there is one.

        Args:
            requests: what it is given.
            calls: for which; while nobody waits for any of them any more, no process is waited for.
            member: number of the process that must run them; None = any.

        Returns:
            The process, and the nanoseconds that bringing the inputs there took.

        Raises:
            Unavailable: no process lives; with the time after which one may.
            DeadlineExceeded, Cancelled: nobody waits for the replies any more.
            Exhausted: the inputs find no room in shared memory.
        """
        while True:
            worker, session = self._claim(calls, None if member is None else self._workers[member])
            started = time.monotonic_ns()
            try:
                session.begin(requests)
            except ChannelClosed:
                # It was told nothing; its thread will find it dead, and start another one.
                if member is not None or len(self._workers) == 1:
                    raise self._down([worker]) from None
                continue
            except BaseException:
                with self._changed:
                    if worker.session is session:
                        worker.busy = False
                        self._changed.notify_all()
                raise
            return session, worker, time.monotonic_ns() - started

    def close(self) -> None:
        """End all processes and free their memory."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.ask_to_stop()
        for worker in self._workers:
            worker.stop()
        self._package.close()

    def _claim(self, calls: Sequence[Call], only: Worker | None) -> tuple[Worker, Session]:
        workers = self._workers if only is None else [only]
        with self._changed:
            while True:
                if self._closed:
                    raise Unavailable(f"model '{self._model}' was unloaded", reason="UNLOADED")
                for worker in workers:
                    if worker.session is not None and not worker.busy:
                        worker.busy = True
                        return worker, worker.session
                if all(worker.session is None for worker in workers):
                    raise self._down(workers)
                if not any(call.wanted for call in calls):
                    raise unwanted(calls[0])
                self._changed.wait(patience(calls))

    def _down(self, workers: Sequence[Worker]) -> Unavailable:
        return Unavailable(
            f"the process of model '{self._model}' has crashed and is being started again",
            reason="MODEL_RESTARTING",
            retry_after=min(worker.retry_after for worker in workers),
        )


class Gathering:
    """The one reply to each of several requests, for the thread that waits for them."""

    def __init__(self, size: int) -> None:
        self.replies: list[Answer | TidemillError | None] = [None] * size
        self._left = size
        self._changed = threading.Condition()

    def receive(self, index: int) -> "Callable[[Answer | TidemillError | None, bool], None]":
        """Takes the replies to one request: the last that says something counts."""

        def take(reply: Answer | TidemillError | None, final: bool) -> None:
            with self._changed:
                if reply is not None:
                    self.replies[index] = reply
                if final:
                    self._left -= 1
                    self._changed.notify_all()

        return take

    def wait(self, calls: Sequence[Call]) -> bool:
        """Wait until all replies are there; False when before that nobody waits for any of them any more."""
        with self._changed:
            while self._left:
                if not any(call.wanted for call in calls):
                    return False
                self._changed.wait(patience(calls))
        return True


def patience(calls: Sequence[Call]) -> float:
    """Seconds to wait before looking again whether somebody still wants an answer."""
    ends = [call.expires for call in calls if call.expires is not None]
    return min(_LOOK, max(0.001, max(ends) - time.monotonic())) if len(ends) == len(calls) else _LOOK


def unwanted(call: Call) -> TidemillError:
    """Why a call is not waited for any more."""
    if call.expires is not None and time.monotonic() >= call.expires:
        return DeadlineExceeded("the request's time was over before the model had answered", reason="EXPIRED")
    return Cancelled("the caller has gone away", reason="CANCELLED")


def _package(files: Mapping[str, bytes]) -> Package:
    try:
        return Package(files)
    except OSError as error:
        raise Unavailable(
            f"there is no memory for the model's files: {os.strerror(error.errno or 0)}", reason="NO_MEMORY"
        ) from error
