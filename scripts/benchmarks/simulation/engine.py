"""Events in order of time, and processes that wait for signals."""

import heapq
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import TypeAlias


class Signal:
    """Something that happens once."""

    __slots__ = ("_waiting", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._waiting: list[Callable[[], None]] = []

    def then(self, action: Callable[[], None]) -> None:
        """Do something when it happens; at once when it has."""
        if self.fired:
            action()
        else:
            self._waiting.append(action)

    def fire(self) -> None:
        """It happens now; once more changes nothing."""
        if self.fired:
            return
        self.fired = True
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()


Process: TypeAlias = Generator[Signal, None, None]
"""What goes on whenever the signal that it yields has happened."""


class Simulation:
    """The time, and what is to happen. Events of one time happen in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Plan something.

        Raises:
            ValueError: the delay is negative, or no number.
        """
        if not delay >= 0:
            raise ValueError(f"nothing happens after {delay} seconds")
        heapq.heappush(self._planned, (self.now + delay, next(self._order), action))

    def timeout(self, delay: float) -> Signal:
        """Happens after some seconds. Raises ValueError as `after`."""
        signal = Signal()
        self.after(delay, signal.fire)
        return signal

    def start(self, process: Process) -> Signal:
        """Let a process run from now on; happens when it has ended."""
        ended = Signal()

        def go_on() -> None:
            for signal in process:
                if not signal.fired:
                    signal.then(go_on)
                    return
            ended.fire()

        go_on()
        return ended

    def run(self) -> None:
        """Let everything happen."""
        while self._planned:
            self.now, _, action = heapq.heappop(self._planned)
            action()


def all_of(signals: Iterable[Signal]) -> Signal:
    """Happens with the last of some signals; at once when there are none."""
    found = list(signals)
    left, together = len(found), Signal()

    def one() -> None:
        nonlocal left
        left -= 1
        if not left:
            together.fire()

    for signal in found:
        signal.then(one)
    if not found:
        together.fire()
    return together
