"""One group of parameters on one shard: synchronous rounds of gradients, and the versions that they make.

Every worker of the group hands in its gradients for the step that is the group's version. When the last one has, the
round closes: the mean is formed in order of rank, the optimizer makes one step, and the version is one higher
(bulk-synchronous parallel training). Whatever happens between belongs to no version and is seen by nobody.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace

from tidemill import errors
from tidemill.errors import FailedPrecondition, Invalid, NotFound, Stale, invalid
from tidemill.parameters.definition import Definition
from tidemill.parameters.optimizers.base import Optimizer
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Contribution, Header, Outcome, mean
from tidemill.parameters.snapshots import Snapshot, Snapshots
from tidemill.parameters.staging import Staging, superseded
from tidemill.slots import Slots
from tidemill.telemetry import attributes
from tidemill.tensors.blocks import Array

LATEST = -1
"""Asks for whatever version is the latest."""
Blocks = Iterable[tuple[int, bytes]]
"""Indexes of blocks with their elements as little-endian float32, as they arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a group is doing."""

    ready: bool
    version: int
    arrived: tuple[int, ...]
    samples: int
    duplicates: int


class Group:
    """One shard's part of a group. Safe for threads; calls that wait hold theirs.

    Two locks: `_changed` guards all fields and is held for moments only; `_applying` is held while the optimizer and
    its state are at work, so that readers of parameters never wait for it. A group that has ended lets go of its memory
    at once, whoever still holds the group; whoever is at work on some of it holds that until done.

    Args:
        definition: what it is made of.
        optimizer: over the definition's blocks.
        created: wall-clock time of its creation.
        waiting: places for calls that wait for a version.
        tracer: makes the span of each round.
        closed: told the seconds that the closing of a round took.
    """

    def __init__(
        self,
        definition: Definition,
        optimizer: Optimizer,
        *,
        created: float,
        waiting: Slots,
        tracer: trace.Tracer,
        closed: Callable[[float], None],
    ) -> None:
        self.definition = definition
        self.created = created
        self.part = Part(definition.blocks)
        self._optimizer: Optimizer | None = optimizer
        self._waiting = waiting
        self._loading = Slots(2, "loads of a group", "LOAD_BUSY")
        self._copying = Slots(1, "copies of a group's optimizer state", "STATE_BUSY", retry_after=1)
        self._tracer = tracer
        self._closed = closed
        self._changed = threading.Condition()
        self._applying = threading.Lock()
        self._ended: Callable[[], errors.TidemillError] | None = None
        self._snapshots: Snapshots | None = None
        self._digest = b""
        self._staged: dict[int, tuple[int, Staging]] = {}
        self._arrived: dict[int, Contribution] = {}
        self._attempts = [0] * definition.workers
        self._closing = False
        self._samples = 0
        self._duplicates = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return self.definition.name

    def status(self) -> Status:
        """What it is doing now."""
        with self._changed:
            return Status(
                ready=self._snapshots is not None,
                version=self._version,
                arrived=tuple(sorted(self._arrived)),
                samples=self._samples,
                duplicates=self._duplicates,
            )

    def load(self, blocks: Blocks) -> None:
        """Take the first values, which are version 0; the same ones again change nothing.

        Raises:
            Invalid: the blocks are not those of the part, whole and finite.
            FailedPrecondition: with reason LOADED, the group has other first values.
        """
        with self._loading:
            staging = Staging(self.part, {})
            for index, data in blocks:
                staging.add(index, data)
            values = staging.whole()
            digest = hashlib.sha256(values.data).digest()
            with self._changed:
                self._check()
                if self._snapshots is None:
                    self._snapshots, self._digest = Snapshots(values), digest
                    self._changed.notify_all()
                elif digest != self._digest:
                    raise FailedPrecondition(f"{self.name} has other first values already", reason="LOADED")

    def push(self, header: Header, blocks: Blocks) -> Outcome:
        """Take one worker's gradients for one step, all blocks of the part or, without samples, none.

        The push that completes the round closes it before it returns.

        Raises:
            Invalid: the rank is none of the group, or the blocks are not those of the part, whole and finite.
            FailedPrecondition: the group is empty, or the step is ahead of it.
            Stale: a later attempt of this rank was here, or another stream of it took this one's place.
        """
        try:
            staging = self._stage(header)
            if staging is None:
                return self._repeated()
            try:
                for index, data in blocks:
                    staging.add(index, data)
                # Without samples the gradients weigh nothing: they need not be sent.
                return self._commit(header, staging, staging.whole(optional=header.samples == 0))
            finally:
                self._unstage(header.worker, staging)
        except errors.TidemillError:
            with self._changed:
                self._duplicates += 1
            raise

    @contextmanager
    def reading(self, version: int, alive: Callable[[], bool]) -> Iterator[Snapshot]:
        """The parameters at `version`, waited for; `LATEST` waits for the first values only.

        Args:
            version: which; the one before the latest is the oldest there is.
            alive: whether anybody still waits; after a change of it, `wake` must be called.

        Raises:
            OutOfRange: the version is not kept any more.
            Exhausted: it would have to be waited for, and too many wait already.
            Cancelled: nobody waits any more.
            NotFound: the group was deleted meanwhile.
        """
        if version < LATEST:
            raise invalid("version", f"must be a version or {LATEST}, not {version}")
        with self._changed:
            self._check()
            if not self._reached(version):
                with self._waiting:
                    self._wait(version, alive)
            assert self._snapshots is not None
            snapshots = self._snapshots
            snapshot = snapshots.take(snapshots.latest.version if version == LATEST else version)
        try:
            yield snapshot
        finally:
            with self._changed:
                snapshots.release(snapshot)

    def wake(self) -> None:
        """Let all who wait look again whether they still should."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def state(self) -> Iterator[tuple[int, dict[str, list[Array | None]]]]:
        """The latest version and a copy of the optimizer's state at it: name -> one array a block of the part.

        Raises:
            FailedPrecondition: the group is empty.
            Exhausted: another copy is being read.
        """
        with self._copying:
            with self._applying:
                with self._changed:
                    self._check()
                    self._loaded()
                    version, optimizer = self._version, self._alive()
                state = optimizer.state()
                del optimizer
            yield version, state

    def delete(self) -> None:
        """Free the memory, and let all who wait for the group fail with NOT_FOUND."""
        name = self.name
        self._end(lambda: NotFound(f"{name} was deleted", metadata={"name": name}))

    def stop(self) -> None:
        """Let all who wait for the group fail with UNAVAILABLE, and take nothing more: the process ends."""
        self._end(lambda: errors.Unavailable("the shard is stopping", reason="STOPPING"))

    def _end(self, error: Callable[[], errors.TidemillError]) -> None:
        """Let go of all memory. `error` is kept: it must not hold the group, which would then outlive its last user."""
        with self._changed:
            self._ended = error
            for _, staging in self._staged.values():
                staging.drop(error)
            self._staged.clear()
            self._arrived = {}
            self._snapshots = None
            self._optimizer = None
            self._changed.notify_all()

    @property
    def _version(self) -> int:
        return 0 if self._snapshots is None else self._snapshots.latest.version

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended()

    def _loaded(self) -> Snapshots:
        if self._snapshots is None:
            raise FailedPrecondition(f"{self.name} has no values yet: load them first", reason="GROUP_EMPTY")
        return self._snapshots

    def _alive(self) -> Optimizer:
        self._check()
        assert self._optimizer is not None
        return self._optimizer

    def _reached(self, version: int) -> bool:
        return self._snapshots is not None and self._snapshots.latest.version >= version

    def _wait(self, version: int, alive: Callable[[], bool]) -> None:
        while not self._reached(version):
            if not alive():
                raise errors.Cancelled("nobody waits for the version any more")
            self._changed.wait()
            self._check()

    def _repeated(self) -> Outcome:
        with self._changed:
            self._duplicates += 1
            return Outcome(True, self._version)

    def _stage(self, header: Header) -> Staging | None:
        """Where this push may put its blocks; None when it is a repetition."""
        worker = header.worker
        with self._changed:
            if not self._joins(header):
                self._attempts[worker] = header.attempt
                return None
            attempt, other = self._staged.get(worker, (header.attempt, None))
            if attempt > header.attempt:
                raise self._stale(header, attempt)
            if other is not None:
                # The worker began again while its broken stream was not yet noticed here: one buffer a worker.
                other.drop(superseded)
            subject = {"worker": str(worker), "step": str(header.step)}
            staging = Staging(self.part, subject)
            self._staged[worker] = header.attempt, staging
            return staging

    def _unstage(self, worker: int, staging: Staging) -> None:
        with self._changed:
            if self._staged.get(worker, (0, None))[1] is staging:
                del self._staged[worker]

    def _joins(self, header: Header) -> bool:
        """Whether a push belongs to the open round and brings something new; False for a repetition."""
        self._check()
        if not 0 <= header.worker < self.definition.workers:
            raise Invalid(
                f"worker {header.worker} is none of the ranks 0 to {self.definition.workers - 1}",
                reason="UNKNOWN_RANK",
                violations={"header.worker": "is not a rank of the group"},
            )
        if header.attempt < self._attempts[header.worker]:
            raise self._stale(header, self._attempts[header.worker])
        version = self._loaded().latest.version
        if header.step > version:
            raise FailedPrecondition(
                f"step {header.step} is ahead of version {version}: pull before the next push",
                reason="STEP_AHEAD",
                metadata={"step": str(header.step), "version": str(version)},
            )
        pending = self._arrived.get(header.worker)
        return header.step == version and (pending is None or pending.attempt < header.attempt)

    def _stale(self, header: Header, attempt: int) -> Stale:
        return Stale(
            f"worker {header.worker} was replaced: attempt {header.attempt} is over, {attempt} is at work",
            reason="STALE_ATTEMPT",
            metadata={"worker": str(header.worker), "attempt": str(attempt)},
        )

    def _commit(self, header: Header, staging: Staging, gradients: Array) -> Outcome:
        with self._changed:
            while self._closing:
                self._changed.wait()
            self._check()
            if self._staged.get(header.worker, (0, None))[1] is not staging:
                raise superseded()
            joins = self._joins(header)
            self._attempts[header.worker] = header.attempt
            if joins:
                self._arrived[header.worker] = Contribution(header.attempt, header.samples, gradients)
                self._closing = len(self._arrived) == self.definition.workers
            if not self._closing:
                self._duplicates += not joins
                return Outcome(not joins, self._version)
        return Outcome(False, self._close())

    def _close(self) -> int:
        """Make the next version of what has arrived, and return it."""
        started = time.perf_counter()
        try:
            with self._applying, self._tracer.start_as_current_span(attributes.SPAN_ROUND) as span:
                version, samples = self._apply()
                span.set_attributes(
                    {
                        attributes.GROUP: self.name,
                        attributes.SHARD: self.definition.shard,
                        attributes.VERSION: version,
                        attributes.SAMPLES: samples,
                    }
                )
        except errors.TidemillError:
            raise
        except BaseException:
            # Part of the blocks may have changed: what the optimizer knows belongs to no version any more.
            name = self.name
            self._end(lambda: errors.Internal(f"the optimizer of {name} failed: delete it", reason="ROUND_FAILED"))
            raise
        finally:
            with self._changed:
                self._closing = False
                self._changed.notify_all()
        self._closed(time.perf_counter() - started)
        return version

    def _apply(self) -> tuple[int, int]:
        with self._changed:
            optimizer = self._alive()
            snapshots = self._loaded()
            contributions = [self._arrived[rank] for rank in sorted(self._arrived)]
        # Nobody else touches these while `_closing`: they are read and overwritten without the lock.
        samples = sum(contribution.samples for contribution in contributions)
        gradients = mean(contributions, self.part)
        values = None
        if gradients is not None:
            values = snapshots.draft()
            optimizer.step(self.part.views(values), self.part.views(gradients))
        with self._changed:
            self._check()
            snapshots.advance(values)
            self._arrived = {}
            self._samples += samples
            return snapshots.latest.version, samples
