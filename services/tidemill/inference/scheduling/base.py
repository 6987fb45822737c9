"""The interface of schedulers: how the calls for a version reach its runtime."""

import threading
from abc import ABC, abstractmethod

from tidemill.errors import Internal, TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.yielding import about_to_wait


class Scheduler(ABC):
    """Decides when and together with which others a call runs. All methods are called from any thread."""

    @abstractmethod
    def submit(self, call: Call, receive: Receive) -> None:
        """Have `call` run; its replies go to `receive`, the last one exactly once, whatever happens.

        May block while the call runs. Raises nothing: what is wrong is a reply.
        """

    def infer(self, call: Call) -> Answer:
        """The one answer to `call`; blocks until it is there.

        Raises:
            TidemillError: it failed, was refused, or nobody waits for it any more.
        """
        waiting = Waiting()
        self.submit(call, waiting)
        return waiting.answer()

    depends = False
    """Whether `available` may change: where other models have to run its calls."""

    @property
    def available(self) -> bool:
        """Whether calls would run now: not where other models have to run them, and one of these cannot."""
        return True

    @property
    def brief(self) -> bool:
        """Whether a call would most likely be answered in a moment, and without waiting for anything."""
        return False

    @property
    def queues(self) -> bool:
        """Whether `submit` never blocks, and gives the one answer to a call from another thread, or at once."""
        return False

    @property
    def pending(self) -> int:
        """Calls that wait, those that run not among them."""
        return 0

    def close(self) -> None:
        """Refuse what still waits, and end; no call comes any more."""
        return


class Waiting:
    """Receives the one answer of a call for the thread that waits for it."""

    __slots__ = ("_done", "_reply")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self._reply: Answer | TidemillError | None = None

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        if reply is not None:
            self._reply = reply
        if final:
            self._done.release()

    def wait(self, seconds: float) -> bool:
        """Whether the last reply came within so many seconds; -1 = for ever."""
        self._about_to_wait()
        if not self._done.acquire(timeout=seconds):
            return False
        self._done.release()
        return True

    def answer(self) -> Answer:
        """Blocks until the last reply is there. Raises it when it is an error."""
        self._about_to_wait()
        with self._done:
            reply = self._reply
        if reply is None:
            raise Internal("the model gave no answer", reason="NO_ANSWER")
        if isinstance(reply, TidemillError):
            raise reply
        return reply

    def _about_to_wait(self) -> None:
        if self._done.locked():
            about_to_wait()
