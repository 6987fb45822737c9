"""Workers that were replaced and go on all the same: how they come about, and what the shards make of them."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partialmethod
from typing import Any

import numpy as np

from tests.support.shards import block, header, wire
from tidemill.clients.replicas import BACKUP
from tidemill.errors import FailedPrecondition, Stale
from tidemill.parameters.group import Group
from tidemill.parameters.rounds import Header, Outcome
from tidemill.training.launchers.local import LocalProcess

POISON = 1e6
"""What a replaced worker would add to every parameter: nobody who sees the weights can overlook it."""


class Unreachable:
    """Workers that nobody can end, as if their machine were cut off: their launcher takes them for killed."""

    def __init__(self) -> None:
        self.pids: set[int] = set()

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While the block runs, launchers of this process lose these."""
        stop, wait, forget = LocalProcess.stop, LocalProcess.wait, LocalProcess.forget
        lost: set[LocalProcess] = set()

        async def stop_or_lose(process: LocalProcess, grace: float | None = None) -> None:
            if process.pid in self.pids:
                lost.add(process)
                await asyncio.sleep(0)
            else:
                await stop(process, grace)

        async def wait_unless_lost(process: LocalProcess) -> int:
            return -9 if process in lost else await wait(process)

        async def forget_unless_lost(process: LocalProcess) -> None:
            if process not in lost:
                await forget(process)

        planted = {"stop": stop_or_lose, "wait": wait_unless_lost, "forget": forget_unless_lost}
        for name, method in planted.items():
            setattr(LocalProcess, name, method)
        try:
            yield
        finally:
            for name, method in {"stop": stop, "wait": wait, "forget": forget}.items():
                setattr(LocalProcess, name, method)


class Fence:
    """Looks at every push that reaches the shards of this process, and speaks for those who were replaced.

    As soon as a shard has taken a push of the successor, and before the successor hears of it, the one before pushes to
    that shard once more: the same step, and the one that is open now.

    Args:
        addresses: of the shards.
        plant: `ignores-attempts` lets shards forget who was replaced.
        alone: number of a shard that shares no memory.
    """

    def __init__(self, addresses: list[str], plant: str, alone: int) -> None:
        self._addresses = addresses
        self._plant = plant
        self._alone = alone
        self._lock = threading.Lock()
        self._latest: Counter[tuple[str, int, int]] = Counter()
        self.voices = 0
        """Pushes for those who were replaced."""
        self.refused = 0
        """Pushes of replaced workers, and for them, that were refused."""
        self.taken = 0
        """Those that were not."""
        self.by_processes = 0
        """Pushes of processes that were replaced."""
        self._samples: dict[tuple[str, int], int] = {}

    def latest(self, group: str, rank: int, copies: int) -> int:
        """The highest attempt of a rank that has pushed to all shards.

        Args:
            group: how its name begins.
            rank: of the worker.
            copies: of each shard.
        """
        with self._lock:
            seen = [at for (name, _, of), at in self._latest.items() if name.startswith(group) and of == rank]
        return min(seen) if len(seen) == copies * len(self._addresses) else 0

    def deleted(self, group: str) -> list[int]:
        """For each shard that has deleted a group, whose name begins so, the samples that made its parameters."""
        with self._lock:
            return [samples for (name, _), samples in self._samples.items() if name.startswith(group)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs."""
        kept = {name: getattr(Group, name) for name in ("push", "attach", "shared", "delete")}
        Group.push = partialmethod(_call, self._push, kept["push"])  # type: ignore[method-assign, assignment]
        Group.attach = partialmethod(_call, self._attach, kept["attach"])  # type: ignore[method-assign, assignment]
        Group.delete = partialmethod(_call, self._delete, kept["delete"])  # type: ignore[method-assign, assignment]
        if self._plant == "ignores-attempts":
            Group.shared = partialmethod(_call, self._shared, kept["shared"])  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for name, method in kept.items():
                setattr(Group, name, method)

    def _push(self, real: Any, group: Group, given: Header, *more: Any) -> Outcome:
        key = group.name, group.definition.shard, given.worker
        with self._lock:
            before = self._latest[key]
        planted = replace(given, attempt=0) if self._plant == "ignores-attempts" else given
        try:
            outcome: Outcome = real(group, planted, *more)
        except Stale as error:
            self._count(given, before, refused=error.reason == "STALE_ATTEMPT")
            raise
        self._count(given, before, refused=False)
        if given.attempt > before:
            self._speak(group, replace(given, attempt=given.attempt - 1), outcome.version)
            with self._lock:
                self._latest[key] = max(self._latest[key], given.attempt)
        return outcome

    def _count(self, given: Header, before: int, *, refused: bool) -> None:
        if given.attempt >= before:
            return
        with self._lock:
            self.by_processes += 1
            self.refused += refused
            self.taken += not refused

    def _speak(self, group: Group, old: Header, version: int) -> None:
        values = np.full(group.part.elements, POISON, np.float32)
        blocks = [block(each.index, group.part.view(values, each.index)) for each in group.part.blocks]
        number = group.definition.shard + group.name.endswith(BACKUP)
        with wire(self._addresses[number % len(self._addresses)]) as shard:
            for step in dict.fromkeys((old.step, version)):
                first = header(old.worker, step, attempt=old.attempt, samples=old.samples or 1, name=group.name)
                refused = False
                with suppress(FailedPrecondition):  # the step is ahead: neither taken nor refused for who asks
                    try:
                        shard.push(first, *blocks)
                    except Stale as error:
                        refused = error.reason == "STALE_ATTEMPT"
                    with self._lock:
                        self.voices += 1
                        self.refused += refused
                        self.taken += not refused

    def _attach(self, real: Any, group: Group, worker: int, attempt: int) -> Any:
        if group.definition.shard == self._alone:
            raise FailedPrecondition("this shard is as if on another host", reason="NO_SHARED_MEMORY")
        return real(group, worker, 0 if self._plant == "ignores-attempts" else attempt)

    def _shared(self, real: Any, group: Group, worker: int, attempt: int) -> Any:
        return real(group, worker, 0)

    def _delete(self, real: Any, group: Group) -> None:
        with self._lock:
            self._samples[group.name, group.definition.shard] = group.status().samples
        real(group)


def _call(group: Group, method: Any, real: Any, *arguments: Any) -> Any:
    return method(real, group, *arguments)
