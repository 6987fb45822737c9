"""What several share evenly: the bandwidth of a network card, the cores of a machine, the threads of a process."""

import heapq
import math
from itertools import count

from scripts.benchmarks.simulation.engine import Signal, Simulation


class Shared:
    """Egalitarian processor sharing: n demands at once get min(cap, capacity / n) each.

    A demand is done when what everybody has got since it began comes to its amount: so a heap of these marks is all
    that is kept (the virtual time of fair queueing, Demers, Keshav and Shenker 1989), and a change costs O(log n).

    Args:
        simulation: whose time it is.
        capacity: units a second of all demands together.
        cap: units a second of one demand at most.
        friction: what the capacity is divided by while there is too little for all.

    Raises:
        ValueError: a rate is not positive, or the friction less than 1.
    """

    def __init__(self, simulation: Simulation, capacity: float, cap: float = math.inf, friction: float = 1.0) -> None:
        if not capacity > 0 or not cap > 0 or not friction >= 1:
            raise ValueError(f"rates are positive, not {capacity} and {cap}; friction is at least 1, not {friction}")
        self._friction = friction
        self._simulation = simulation
        self._capacity = capacity
        self._cap = cap
        self._share = 0.0
        self._seen = 0.0
        self._plan = 0
        self._order = count()
        self._open: list[tuple[float, int, Signal]] = []
        self.served = 0.0
        """Units of all demands that are done."""

    def use(self, amount: float) -> Signal:
        """Happens when so many units were had. Raises ValueError for a negative number of them."""
        if not amount >= 0:
            raise ValueError(f"nobody can use {amount}")
        done = Signal()
        self.served += amount
        if amount == 0 or self._rate(1) == math.inf:
            done.fire()
            return done
        self._catch_up()
        heapq.heappush(self._open, (self._share + amount, next(self._order), done))
        self._plan_next()
        return done

    def alone(self, amount: float) -> float:
        """Seconds that a demand would take if it were the only one."""
        return amount / self._rate(1)

    def _rate(self, demands: int) -> float:
        share = self._capacity / demands
        return self._cap if share >= self._cap else share / self._friction

    def _catch_up(self) -> None:
        now = self._simulation.now
        if self._open:
            self._share += (now - self._seen) * self._rate(len(self._open))
        else:
            self._share = 0.0
        self._seen = now

    def _plan_next(self) -> None:
        """Plan when the first demand will be done as things are; earlier plans are void."""
        self._plan += 1
        if self._open:
            plan = self._plan
            left = max(0.0, self._open[0][0] - self._share) / self._rate(len(self._open))
            self._simulation.after(left, lambda: self._complete(plan))

    def _complete(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._catch_up()
        # The first one is done by definition; those within rounding of it as well.
        self._share = max(self._share, self._open[0][0])
        done = []
        while self._open and self._open[0][0] <= self._share * (1 + 1e-12):
            done.append(heapq.heappop(self._open)[2])
        self._plan_next()
        for signal in done:
            signal.fire()
