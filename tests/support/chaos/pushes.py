"""Workers whose every push can be found again in the parameters, and what they see while shards die."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from tests.support.shards import block, header, wire
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import Layout, ParametersClient
from tidemill.clients.replicas import BACKUP, Arbiter
from tidemill.rpc.status import translated
from tidemill.tensors.blocks import Array

RATE = 1.0
"""Of the plain gradient descent that makes counts of pushes."""
POISON = 1e6
PATIENCE = 60.0
SOONEST = 0.3
"""Seconds in which no process starts: what is acknowledged before that after a kill needed nothing of it any more."""
AUDIT = 10.0
REFUSAL = 5.0
"""Seconds in which a push of a replaced worker is refused."""


class Counts:
    """Where in the parameters which push is counted: in every block once, and for every worker and step apart.

    A push takes 1 off the parameter that counts it, so that after n pushes the counts say exactly which of them were
    applied, and how often, on which shard; numbers that small are exact in float32. Steps come round again after
    `period`: then the counts are 2.

    Args:
        layout: of the group.
    """

    def __init__(self, layout: Layout) -> None:
        self.workers = layout.workers
        self.rounds = layout.rounds
        self.elements = layout.elements
        self._offsets = np.array([each.offset for part in layout.parts for each in part])
        self.period = min(each.elements for part in layout.parts for each in part) // self.workers
        ranks, steps = np.arange(self.workers) * self.period, np.arange(self.period)
        self._where = self._offsets[:, None, None] + ranks[:, None] + steps

    def gradient(self, rank: int, step: int) -> Array:
        """What makes a push count 1: alone, or as part of the mean of a round."""
        made = np.zeros(self.elements, np.float32)
        made[self._where[:, rank, step % self.period]] = -(self.workers if self.rounds else 1) / RATE
        return made

    def wanted(self, steps: list[int]) -> Array:
        """[workers, period] counts after so many pushes of each worker."""
        ahead = np.array(steps)[:, None] + self.period - 1 - np.arange(self.period)
        return ahead // self.period

    def wrong(self, flat: Array, least: list[int], most: list[int]) -> tuple[int, int]:
        """Pushes, on any shard, that are lost and that were applied twice.

        Args:
            flat: the parameters.
            least: for each worker the number of its pushes that must be in them.
            most: those that may be.
        """
        found = flat[self._where]
        lost = np.maximum(self.wanted(least) - found, 0).max(axis=0).sum()
        twice = np.maximum(found - self.wanted(most), 0).max(axis=0).sum()
        return int(np.ceil(lost)), int(np.ceil(twice))


@dataclass
class Seen:
    """What workers and readers of one group have seen; guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    started: list[int] = field(default_factory=list)
    """For each worker the number of pushes that it has begun."""
    acknowledged: list[int] = field(default_factory=list)
    """Those that were acknowledged."""
    last: float = 0.0
    """When the latest push was acknowledged."""
    pushes: int = 0
    pulls: int = 0
    lost: int = 0
    twice: int = 0
    back: int = 0
    """Pulls that were behind what had been acknowledged before."""
    unsure: int = 0
    """Pulls that were behind what was shown before, but not acknowledged."""
    repeated: int = 0
    taken_again: int = 0
    """Acknowledged pushes that were taken once more, after a restart."""
    old: int = 0
    heard: int = 0
    """Pushes of replaced workers that were taken after a restart."""
    halves: int = 0
    failures: list[str] = field(default_factory=list)

    def wrong(self, lost: int, twice: int) -> None:
        """So many are lost, or applied twice, in what somebody has pulled."""
        with self.changed:
            self.lost, self.twice = max(self.lost, lost), max(self.twice, twice)

    def fail(self, error: Exception) -> None:
        """Somebody cannot go on."""
        with self.changed:
            self.failures.append(f"{type(error).__name__}: {error}")
            self.changed.notify_all()


class Trial:
    """Workers and a reader of one group, each a thread, until the block ends.

    Args:
        addresses: of the shards.
        group: `groups/{group}`: of zeros, with `RATE`.
        durable: whether a push is acknowledged when its round has closed.
        arbiter: of a replicated group.
    """

    def __init__(self, addresses: list[str], group: str, *, durable: bool, arbiter: Arbiter | None = None) -> None:
        self.addresses = addresses
        self.group = group
        self.durable = durable
        self._arbiter = arbiter
        self.dead = -1
        """Number of the process that is dead, with its copies."""
        self.kills = 0
        """Deaths of shards so far."""
        self.stop = threading.Event()
        self.half: Half | None = None
        self.rest: Rest | None = None
        with self._client(shared=False) as client:
            self.counts = Counts(client.layout)
            client.load(np.zeros(client.layout.elements, np.float32))
        workers = self.counts.workers
        self.seen = Seen(started=[0] * workers, acknowledged=[0] * workers)
        self._clients = [self._client(shared=rank == 0) for rank in range(workers + 1)]
        runs = [Worker(self, client, rank).run for rank, client in enumerate(self._clients[:workers])]
        runs.append(Reader(self, self._clients[-1]).run)
        self._threads = [threading.Thread(target=self._guarded, args=(run,)) for run in runs]

    def _client(self, *, shared: bool, patience: float = PATIENCE) -> ParametersClient:
        return ParametersClient(self.addresses, self.group, shared=shared, patience=patience, arbiter=self._arbiter)

    def copies(self, shard: int) -> list[tuple[str, str]]:
        """Address and group of each copy of a shard that is not dead."""
        number, count = shard % len(self.addresses), len(self.addresses)
        found = [(number, self.group)]
        if self._arbiter is not None:
            found.append(((number + 1) % count, f"{self.group}{BACKUP}"))
        return [(self.addresses[process], name) for process, name in found if process != self.dead]

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except errors.TidemillError as error:
            if not self.stop.is_set():
                self.seen.fail(error)

    def acknowledges(self, since: float, within: float) -> float:
        """Seconds until the first push is acknowledged `SOONEST` after `since`; infinity when none is in time."""
        seen = self.seen
        with seen.changed:
            seen.changed.wait_for(lambda: seen.last > since + SOONEST or seen.failures, within)
            return seen.last - since if seen.last > since + SOONEST else float("inf")

    def audit(self) -> None:
        """Look once more, whatever has become of the workers; what cannot be had any more is lost."""
        with self.seen.changed:
            least = list(self.seen.acknowledged)
        try:
            with self._client(shared=False, patience=AUDIT) as client:
                _, values = client.pull(timeout=AUDIT)
        except errors.TidemillError:
            self.seen.wrong(sum(least), 0)
            return
        with self.seen.changed:
            most = list(self.seen.started)
        # Without a log a push may be acknowledged, and its round not closed.
        self.seen.wrong(*self.counts.wrong(values, least if self.durable or not self.counts.rounds else [0], most))

    def halve(self, shard: int) -> "Half":
        """Let the next push to a shard stop half-way; see `Half`."""
        self.half = Half(self, shard)
        return self.half

    def pause(self, shard: int) -> "Rest":
        """Let the next worker that is between two steps rest; see `Rest`."""
        self.rest = Rest(shard)
        return self.rest

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop.set()
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join()


class Rest:
    """A worker rests while a shard dies, and then somebody before it is the first one whom the shard hears.

    Args:
        shard: the shard.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.sent = threading.Event()
        self.over = threading.Event()


class Half:
    """A push to one shard of which only the first half of the blocks is sent, until the shard is dead.

    Args:
        trial: whose push it is.
        shard: to which it goes.
    """

    def __init__(self, trial: Trial, shard: int) -> None:
        self._trial = trial
        self._shard = shard
        self.sent = threading.Event()
        self.over = threading.Event()

    def push(self, client: ParametersClient, flat: Array, rank: int, step: int, attempt: int) -> None:
        """Send it, as far as it goes."""
        parts = client.layout.parts[self._shard]

        def messages() -> Iterator[pb.PushRequest]:
            yield header(rank, step, attempt=attempt, name=self._trial.group)
            for each in parts[: len(parts) // 2]:
                yield block(each.index, flat[each.slice])
            self.sent.set()
            self.over.wait(PATIENCE)

        with wire(self._trial.addresses[self._shard]) as shard:
            call = shard.stub.Push.future(messages(), timeout=PATIENCE)
            try:
                call.result()
            except grpc.RpcError:
                return
            finally:
                self.sent.set()


class Worker:
    """Pushes and pulls step by step, as a worker of a job does.

    After each death of a shard the attempt before it is heard once more, which must be refused, and its last push is
    sent again, which must be known; then it is replaced by a later attempt.

    Args:
        trial: what it takes part in.
        client: its own.
        rank: its own.
    """

    def __init__(self, trial: Trial, client: ParametersClient, rank: int) -> None:
        self._trial = trial
        self._client = client
        self._rank = rank
        self._step = 0
        self._attempt = 1

    def run(self) -> None:
        """Work until the trial ends."""
        trial, seen = self._trial, self._trial.seen
        values = np.zeros(trial.counts.elements, np.float32)
        kills = 0
        while not trial.stop.is_set():
            if kills != trial.kills and self._step:
                kills = trial.kills
                self._again()
            rest = trial.rest
            if rest is not None and self._step and not rest.sent.is_set():
                trial.rest = None
                rest.sent.set()
                rest.over.wait(PATIENCE)
                self._haunt(rest.shard, patience=PATIENCE)
                self._repeat()
            self._push()
            with seen.changed:
                least = list(seen.acknowledged)
            self._pull(values, least)

    def _push(self) -> None:
        seen, rank, step = self._trial.seen, self._rank, self._step
        gradient = self._trial.counts.gradient(rank, step)
        with seen.changed:
            seen.started[rank] = step + 1
        half = self._trial.half
        if half is not None and not half.sent.is_set():
            self._trial.half = None
            half.push(self._client, gradient, rank, step, self._attempt)
            seen.halves += 1
        self._client.push(gradient, worker=rank, step=step, attempt=self._attempt)
        self._step += 1
        with seen.changed:
            seen.acknowledged[rank] = self._step
            seen.last = time.monotonic()
            seen.pushes += 1
            seen.changed.notify_all()

    def _pull(self, values: Array, least: list[int]) -> None:
        trial = self._trial
        self._client.pull(self._step, values, worker=self._rank, attempt=self._attempt)
        with trial.seen.changed:
            most = list(trial.seen.started)
            trial.seen.pulls += 1
        if trial.counts.rounds:
            least = most = [self._step] * trial.counts.workers
        trial.seen.wrong(*trial.counts.wrong(values, least, most))

    def _again(self) -> None:
        for shard in range(len(self._trial.addresses)):
            self._haunt(shard)
        self._repeat()
        self._attempt += 1

    def _repeat(self) -> None:
        seen, rank = self._trial.seen, self._rank
        gradient = self._trial.counts.gradient(rank, self._step - 1)
        outcome = self._client.push(gradient, worker=rank, step=self._step - 1, attempt=self._attempt)
        with seen.changed:
            seen.repeated += 1
            seen.taken_again += not outcome.duplicate

    def _haunt(self, shard: int, *, patience: float = 0.0) -> None:
        """Push to a shard as the attempt before; again for so many seconds while it is dead."""
        for address, group in self._trial.copies(shard):
            self._push_as_before(shard, address, group, patience)

    def _push_as_before(self, shard: int, address: str, group: str, patience: float) -> None:
        seen = self._trial.seen
        first = header(self._rank, self._step, attempt=self._attempt - 1, name=group)
        poison = [block(b.index, np.full(b.elements, POISON)) for b in self._client.layout.parts[shard]]
        ends = time.monotonic() + patience
        while True:
            heard = True
            try:
                with wire(address) as dialled, translated():
                    dialled.stub.Push(iter([first, *poison]), timeout=REFUSAL)
            except errors.Stale:
                heard = False
            except errors.DeadlineExceeded:
                pass  # it was taken, and waits for the others of its round
            except errors.Unavailable:
                if time.monotonic() >= ends or self._trial.stop.wait(0.02):
                    return
                continue
            with seen.changed:
                seen.old += 1
                seen.heard += heard
            return


class Reader:
    """Pulls the latest parameters all the time, as who serves them would."""

    def __init__(self, trial: Trial, client: ParametersClient) -> None:
        self._trial = trial
        self._client = client

    def run(self) -> None:
        """Read until the trial ends."""
        trial, seen = self._trial, self._trial.seen
        before = 0
        while not trial.stop.wait(0.02):
            with seen.changed:
                least = list(seen.acknowledged)
            version, values = self._client.pull()
            with seen.changed:
                most = list(seen.started)
                seen.pulls += 1
            back = False
            if trial.counts.rounds:
                back = version < (max(least) if trial.durable else min(least))
                least = most = [version] * trial.counts.workers
            lost, twice = trial.counts.wrong(values, least, most)
            seen.wrong(lost, twice)
            with seen.changed:
                seen.back += back or (bool(lost) and not trial.counts.rounds)
                seen.unsure += version < before
            before = version
