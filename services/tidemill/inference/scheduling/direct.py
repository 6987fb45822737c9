"""Every call runs at once, on the thread that brings it."""

from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.executor import Executor
from tidemill.inference.scheduling.base import Scheduler


class DirectScheduler(Scheduler):
    """For models without batching or other order: nothing is faster for a small one.

    Args:
        executor: runs the calls; how many at a time, is its business.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @property
    def brief(self) -> bool:
        """Whether the model was quick lately, and nobody waits for an instance of it."""
        return self._executor.brief

    def infer(self, call: Call) -> Answer:
        """Run `call` now. Raises TidemillError."""
        return self._executor.run_one(call)

    def submit(self, call: Call, receive: Receive) -> None:
        """Run `call` now."""
        if self._executor.decoupled:
            self._executor.stream(call, receive)
            return
        reply: Answer | TidemillError
        try:
            reply = self._executor.run_one(call)
        except TidemillError as error:
            reply = error
        receive(reply, True)
