"""Workers on a real shard, until all of them together have made so many steps."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from scripts.benchmarks.measuring.processes import Shard
from scripts.benchmarks.straggling import digits
from scripts.benchmarks.straggling.delays import Delays
from scripts.benchmarks.straggling.digits import Digits
from tidemill import errors
from tidemill.clients.parameters import LATEST, ParametersAdmin, ParametersClient
from tidemill.tensors.blocks import Array

GROUP = "groups/stragglers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How workers wait for each other."""

    text: str
    mode: str
    staleness: int = 0
    most_dropped: int = 0
    """Workers without which a round closes."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run came to."""

    seconds: float
    loss: float
    """Over all data, by the last parameters."""
    widest: int
    """Most steps that one worker had ever begun beyond another: with a staleness of s, s + 1."""
    each: Sequence[int]
    """Steps of each worker that were used."""


class Budget:
    """The steps of all workers together, so that every way learns from as many samples. Safe for threads.

    Args:
        workers: how many there are.
        steps: of all together.
        even: whether every worker must make as many: in rounds.
    """

    def __init__(self, workers: int, steps: int, even: bool) -> None:
        self._lock = threading.Lock()
        self._left = self._open = steps
        self._most = steps // workers if even else steps
        self.made = [0] * workers
        """Steps that each worker has begun, without those that were not used."""
        self.widest = 0
        """Most steps that one worker had ever begun beyond another: with a staleness of s, s + 1."""
        self.ended = 0.0
        """When the last step was acknowledged."""
        self.over = threading.Event()
        """All steps were acknowledged, or a worker failed."""

    def take(self, worker: int) -> bool:
        """Whether the worker is to make another step."""
        with self._lock:
            if not self._left or self.made[worker] == self._most:
                return False
            self._left -= 1
            self.made[worker] += 1
            self.widest = max(self.widest, max(self.made) - min(self.made))
            return True

    def give_back(self, worker: int) -> None:
        """A step was not used: somebody is to make another one."""
        with self._lock:
            self._left += 1
            self.made[worker] -= 1

    def made_one(self) -> None:
        """A step was acknowledged."""
        with self._lock:
            self._open -= 1
            if not self._open:
                self.ended = time.perf_counter()
                self.over.set()


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker, in a thread of its own: it sleeps most of the time."""

    rank: int
    client: ParametersClient
    budget: Budget
    delays: Delays
    data: Digits
    seed: int

    def train(self) -> None:
        """Steps until there are no more; or until nobody makes those that it waits for."""
        try:
            self._steps()
        except errors.Cancelled:
            if not self.budget.over.is_set():
                raise
        except BaseException:
            self.budget.over.set()  # the others would wait for ever
            raise

    def _steps(self) -> None:
        values = self.client.pull(0, worker=self.rank)[1]
        step = 0
        while self.budget.take(self.rank):
            ends = time.perf_counter() + self.delays.of(self.rank, step)
            gradient = digits.gradient(values, *self.data.batch(self.rank, step, self.seed))
            time.sleep(max(0.0, ends - time.perf_counter()))
            outcome = self.client.push(gradient, worker=self.rank, step=step)
            if outcome.dropped:
                self.budget.give_back(self.rank)
            else:
                self.budget.made_one()
            step = self._next(LATEST if outcome.dropped else step + 1, values)

    def _next(self, wanted: int, values: Array) -> int:
        """Put the parameters to go on with into `values`; the step that they are for."""
        try:
            found, _ = self.client.pull(wanted, values, worker=self.rank)
        except errors.OutOfRange:  # the others have left it behind
            wanted = LATEST
            found, _ = self.client.pull(LATEST, values, worker=self.rank)
        return found if wanted == LATEST else wanted


def run(shard: Shard, way: Way, delays: Delays, *, workers: int, steps: int, rate: float, seed: int) -> Result:
    """One run.

    Args:
        shard: one of ours.
        way: how workers wait for each other.
        delays: how long steps take.
        workers: how many.
        steps: of all workers together; a multiple of the workers.
        rate: learning rate for the mean gradient of all workers. Where every push is a step by itself it is divided by
            their number: then as many samples move the parameters as far.
        seed: of the first values and the batches.
    """
    data, first, rounds = Digits.load(), digits.first_values(seed), way.mode == "bsp"
    asyncio.run(_create(shard, way, workers, len(first), rate if rounds else rate / workers))
    try:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(ParametersClient([shard.address], GROUP, shared=False)) for _ in range(workers + 1)
            ]
            clients[-1].load(first)
            budget = Budget(workers, steps, rounds and not way.most_dropped)
            crew = [Worker(rank, clients[rank], budget, delays, data, seed) for rank in range(workers)]
            with ThreadPoolExecutor(workers) as pool:
                began = time.perf_counter()
                futures = [pool.submit(worker.train) for worker in crew]
                budget.over.wait()
                for client in clients[:-1]:
                    client.close()
            for future in futures:
                future.result()
            _, values = clients[-1].pull(LATEST)
            return Result(budget.ended - began, digits.loss(values, data.x, data.y), budget.widest, tuple(budget.made))
    finally:
        asyncio.run(_delete(shard))


async def _create(shard: Shard, way: Way, workers: int, elements: int, rate: float) -> None:
    async with ParametersAdmin([shard.address]) as admin:
        await admin.create_group(
            GROUP,
            [("w", (elements,))],
            optimizer="sgd",
            parameters={"learning_rate": rate},
            workers=workers,
            mode=way.mode,
            staleness=way.staleness,
            stragglers="drop" if way.most_dropped else "wait",
            most_dropped=way.most_dropped,
        )


async def _delete(shard: Shard) -> None:
    async with ParametersAdmin([shard.address]) as admin:
        await admin.delete_group(GROUP)
