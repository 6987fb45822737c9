"""One group of parameters on one shard: whose pushes count, once, and who waits for what.

What becomes of a push that counts is the business of the group's way of consistency (`consistency/`). Whatever happens
while that is at work belongs to no version and is seen by nobody.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry import trace

from tidemill import errors
from tidemill.clock import Clock
from tidemill.compression import catalogue
from tidemill.errors import FailedPrecondition, Invalid, NotFound, Stale, invalid
from tidemill.parameters.consistency.base import Applied, Consistency, Reading, Wish
from tidemill.parameters.definition import Definition
from tidemill.parameters.durability.base import Beginning, Journal
from tidemill.parameters.pool import Pool
from tidemill.parameters.rounds import Header, Outcome
from tidemill.parameters.saved import Gathering, Position, Saved
from tidemill.parameters.segments import Partials
from tidemill.parameters.sharedmemory import Segment
from tidemill.parameters.staging import Staging, superseded
from tidemill.parameters.stragglers import overdue
from tidemill.parameters.sums import Sums, Turn
from tidemill.slots import Slots
from tidemill.telemetry import attributes
from tidemill.tensors.blocks import Array

NOBODY = Header(worker=0, step=0, attempt=0, samples=0)
"""Stands for the push that closes a round, where there was none."""
Blocks = Iterable[tuple[int, bytes | memoryview] | tuple[int, bytes | memoryview, bytes]]
"""Indexes of blocks with their elements as little-endian float32, as they arrive; of tables, the numbers of the touched
rows as little-endian 32-bit integers after that."""


@dataclass(slots=True)
class Member:
    """What is known of a worker.

    Args:
        attempt: the latest one that was seen.
        seen: when it was last heard of, wall-clock time; 0 = never.
        waits: what its pulls wait for, in words.
        staging: where a push of its attempt gathers.
        segment: memory that its attempt shares.
        dropped: its pushes whose round had closed without them.
    """

    attempt: int = 0
    seen: float = 0.0
    waits: list[str] = field(default_factory=list)
    staging: tuple[int, Staging] | None = None
    segment: tuple[int, Segment] | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """A worker as others may see it."""

    worker: int
    attempt: int
    clock: int
    seen: float
    waits_for: str
    bytes_in_flight: int
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a group is doing."""

    ready: bool
    version: int
    steps: int
    term: int
    arrived: tuple[int, ...]
    samples: int
    duplicates: int
    sums: int
    members: tuple[MemberStatus, ...]


class Group:
    """One shard's part of a group. Safe for threads; calls that wait hold theirs.

    Two locks: `_changed` guards all fields and is held for moments only; `_applying` is held while pushes are applied,
    so that readers never wait for it. A group that has ended lets go of its memory at once, whoever still holds the
    group; whoever is at work on some of it holds that until done.

    Args:
        definition: what it is made of.
        way: holds the parameters, and applies pushes.
        journal: keeps the steps.
        clock: the time.
        waiting: places for calls that wait for a version.
        tracer: makes the span of each round.
        closed: told the seconds that it took to apply a push or a round.
    """

    def __init__(
        self,
        definition: Definition,
        way: Consistency,
        journal: Journal,
        *,
        clock: Clock,
        waiting: Slots,
        tracer: trace.Tracer,
        closed: Callable[[float], None],
    ) -> None:
        self.definition = definition
        self.created = clock.now()
        self.part = way.part
        self._way: Consistency | None = way
        way.time = clock.monotonic
        self._journal = journal
        self._clock = clock
        self._waiting = waiting
        self._loading = Slots(2, "loads of a group", "LOAD_BUSY")
        self._copying = Slots(1, "copies of a group's optimizer state", "STATE_BUSY", retry_after=1)
        self._tracer = tracer
        self._closed = closed
        self._changed = threading.Condition()
        self._applying = threading.Lock()
        self._ended: Callable[[], errors.TidemillError] | None = None
        self._settled = False
        self._pool: Pool | None = way.pool
        self._term = 0
        self._digest = b""
        self._members = [Member() for _ in range(definition.workers)]
        self._samples = 0
        self._duplicates = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return self.definition.name

    def status(self) -> Status:
        """What it is doing now."""
        with self._changed:
            way = self._way
            return Status(
                ready=bool(self._digest),
                version=way.version if way else 0,
                steps=way.rule.steps if way else 0,
                term=self._term,
                arrived=way.arrived if way else (),
                samples=self._samples,
                duplicates=self._duplicates,
                sums=way.rule.exchanges if way and way.sums else 0,
                members=tuple(
                    MemberStatus(
                        worker=worker,
                        attempt=member.attempt,
                        clock=way.clock(worker) if way else 0,
                        seen=member.seen,
                        waits_for="; ".join(member.waits),
                        bytes_in_flight=member.staging[1].received if member.staging else 0,
                        dropped=member.dropped,
                    )
                    for worker, member in enumerate(self._members)
                ),
            )

    def recover(self) -> None:
        """Go on from what the journal has kept; before anybody knows of the group.

        What is damaged is not used: then every call but `delete` fails with DataLoss.
        """
        way = self._alive()
        try:
            digest = self._journal.recover(way)
        except (errors.DataLoss, Invalid) as error:
            text = f"{self.name} cannot be recovered on this shard: {error.message}"
            self._end(lambda: errors.DataLoss(text, reason="DAMAGED"))
            return
        if digest is None:
            return
        self._digest = digest
        self._samples = self._journal.samples
        for member, attempt in zip(self._members, self._journal.attempts, strict=True):
            member.attempt = attempt

    def load(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Take the first values, which are version 0; the same ones again change nothing. Raises as `restore`."""
        self.restore(("", index, data) for index, data in blocks)

    def restore(self, pieces: Iterable[tuple[str, int, bytes]], position: Position | None = None) -> None:
        """Begin, with first values or where another group has ended; the same again changes nothing.

        Args:
            pieces: blocks: of which optimizer state, "" = of the parameters; index; elements as little-endian float32.
            position: where the group goes on; None = it begins, at version 0.

        Raises:
            Invalid: the blocks are not those of the part, whole and finite; STATE_MISMATCH, the state is not one of the
                group's optimizer.
            FailedPrecondition: with reason LOADED, the group has begun with something else.
        """
        definition = self.definition
        if position is not None:
            position.check(definition.workers, rounds=definition.consistency.rounds)
        with self._loading:
            gathering = Gathering(self.part)
            digest = hashlib.sha256(repr(position).encode() if position else b"")
            for name, index, data in pieces:
                gathering.add(name, index, data)
            if gathering.has_state and position is None:
                raise invalid("state", "needs a position: a group that begins has none")
            values = gathering.values()
            digest.update(values.data)
            with self._alone():
                with self._changed:
                    way: Consistency | None = self._alive()
                    if self._digest:
                        if self._digest != digest.digest():
                            raise FailedPrecondition(f"{self.name} has other first values already", reason="LOADED")
                        return
                assert way is not None
                start = position or Position(clocks=(0,) * definition.workers)
                state = gathering.state(way.rule.state()) if position else {}
                saved = Saved(position=start, values=values, state=state)
                way.restore(saved)
                self._journal.begin(Beginning(saved=saved, digest=digest.digest()))
                with self._changed:
                    self._check()
                    self._digest, self._samples = digest.digest(), start.samples
                    self._changed.notify_all()

    def push(self, header: Header, blocks: Blocks, alive: Callable[[], bool] = lambda: True) -> Outcome:
        """Take one worker's gradients for one step, all blocks of the part or, without samples, none.

        What it completes is applied before it returns: a round, or the push itself where there are no rounds. When the
        group outlives its shard, a push that completes nothing waits until it was applied.

        Args:
            header: who, and for which step.
            blocks: the gradients.
            alive: whether anybody still waits for the answer; after a change of it, `wake` must be called.

        Raises:
            Invalid: the rank is none of the group, or the blocks are not those of the part, whole and finite.
            FailedPrecondition: the group is empty, or the step is ahead of it.
            Stale: a later attempt of this rank was here, or another stream of it took this one's place.
        """
        try:
            staging = self._stage(header)
            if staging is None:
                return self._repeated(header, alive)
            try:
                if header.shared and header.samples:
                    staging.fill(self.shared(header.worker, header.attempt).gradients)
                for index, data, *rows in blocks:
                    if rows and index in self.part.widths:
                        staging.add_rows(index, rows[0], data)
                    else:
                        staging.add(index, data)
                # Without samples the gradients weigh nothing: they need not be sent.
                return self._commit(header, staging, staging.whole(optional=header.samples == 0), alive)
            finally:
                self._unstage(header.worker, staging)
        except errors.TidemillError:
            with self._changed:
                self._duplicates += 1
            raise

    def attach(self, worker: int, attempt: int) -> Segment:
        """Memory for a worker's attempt to share, the same one each time it asks.

        Raises:
            Invalid: the group has no such worker.
            Stale: a later attempt of this rank was here.
            Exhausted: there is no memory.
            FailedPrecondition: reason NO_SHARED_MEMORY, this system has none.
        """
        if self.part.widths:
            raise FailedPrecondition(f"{self.name} has tables: rows are not shared", reason="NO_SHARED_MEMORY")
        with self._changed:
            self._check()
            member = self._member(worker)
            if attempt < member.attempt:
                raise self._stale(worker, attempt, member.attempt)
            if member.segment is not None:
                known, segment = member.segment
                if known == attempt:
                    return segment
                if attempt < known:
                    raise self._stale(worker, attempt, known)
                segment.close()
            rounds = self.definition.consistency.rounds
            segment = Segment(self.part.elements, parameters=not rounds)
            self._alive().share()
            member.segment = attempt, segment
            return member.segment[1]

    @property
    def attached(self) -> int:
        """Bytes of the parameters that lie in shared memory once more."""
        return 4 * self.part.elements * sum(member.segment is not None for member in self._members)

    def shared(self, worker: int, attempt: int) -> Segment:
        """What `attach` gave to this attempt.

        Raises:
            FailedPrecondition: reason NOT_ATTACHED, it gave nothing.
        """
        with self._changed:
            self._check()
            held = self._member(worker).segment
        if held is None or held[0] != attempt:
            raise FailedPrecondition(f"worker {worker} shares no memory with this shard", reason="NOT_ATTACHED")
        return held[1]

    @contextmanager
    def reading(self, wish: Wish, alive: Callable[[], bool]) -> Iterator[Reading]:
        """The parameters, once they are there to be read.

        Args:
            wish: what is asked for.
            alive: whether anybody still waits; after a change of it, `wake` must be called.

        Raises:
            Invalid: the worker is none of the group.
            OutOfRange: the version is not kept any more.
            Exhausted: it would have to be waited for, and too many wait already.
            Cancelled: nobody waits any more.
            NotFound: the group was deleted meanwhile.
        """
        with self._changed:
            self._check()
            if wish.worker is not None:
                self._member(wish.worker).seen = self._clock.now()
            if self._waits_for(wish):
                with self._waiting:
                    self._wait(wish, alive)
            reading = self._alive().read(wish)
        try:
            yield reading
        finally:
            with self._changed:
                reading.close()

    def hold(self, least: int = 0) -> int:
        """The step, `least` or a later one, that no worker but that of rank 0 begins from now on; none has begun it.

        Raises:
            FailedPrecondition: the group is empty; reason NO_HOLD, nobody passes rank 0 anyway.
        """
        with self._changed:
            held = self._loaded().hold(least)
            self._changed.notify_all()
            return held

    def read_sums(self, turn: Turn, alive: Callable[[], bool]) -> Partials | None:
        """This shard's sums in the middle of a step, for which it waits for those of the others. As `Sums.read`.

        Raises:
            FailedPrecondition: reason NO_SUMS, its steps need none.
        """
        return self._sums().read(turn, alive)

    def write_sums(self, turn: Turn, all_shards: Sequence[Partials]) -> None:
        """Let a step go on with the sums of all shards. As `Sums.write`, and `read_sums`."""
        self._sums().write(turn, all_shards)

    def _sums(self) -> Sums:
        with self._changed:
            sums = self._alive().sums
        if sums is None:
            raise FailedPrecondition(f"steps of {self.name} need nothing of other shards", reason="NO_SUMS")
        return sums

    def close_round(self, step: int, ranks: Sequence[int]) -> int:
        """Take the first shard's word on whose gradients make a step; the version afterwards.

        Raises:
            Invalid: these cannot make a round.
            FailedPrecondition: NO_VERDICT, this shard decides by itself; STEP_AHEAD; CONTRADICTION, it knows otherwise.
        """
        with self._changed:
            while self._loaded().busy(NOBODY):
                self._changed.wait()
            way = self._alive()
            due = way.roll.told(step, way.version, ranks) and way.due()
            version = way.version
            self._changed.notify_all()
        del way
        return self._apply(NOBODY) if due else version

    def wake(self) -> None:
        """Let all who wait look again whether they still should."""
        with self._changed:
            self._changed.notify_all()
            sums = self._way.sums if self._way else None
        if sums is not None:
            sums.wake()

    @contextmanager
    def state(self, *, parameters: bool = False) -> Iterator[Saved]:
        """A copy of all there is to know after the last step; the parameters only if asked for.

        Raises:
            FailedPrecondition: the group is empty.
            Exhausted: another copy is being read.
        """
        with self._copying:
            with self._alone():
                with self._changed:
                    self._loaded()
                saved = self._saved(parameters=parameters)
            yield saved

    def delete(self) -> None:
        """Free the memory, and let all who wait for the group fail with NOT_FOUND."""
        name = self.name
        self._end(lambda: NotFound(f"{name} was deleted", metadata={"name": name}))
        self._journal.delete()
        self._settle()

    def stop(self) -> None:
        """Let all who wait for the group fail with UNAVAILABLE, and take nothing more: the process ends."""
        self._end(lambda: errors.Unavailable("the shard is stopping", reason="STOPPING"))
        self._settle()

    def _end(self, error: Callable[[], errors.TidemillError]) -> None:
        """Let go of all memory. `error` is kept: it must not hold the group, which would then outlive its last user."""
        with self._changed:
            self._ended = error
            for member in self._members:
                if member.staging is not None:
                    member.staging[1].drop(error)
                    member.staging = None
                if member.segment is not None:
                    member.segment[1].close()
                    member.segment = None
            if self._way is not None and self._way.sums is not None:
                self._way.sums.end(error)
            self._way = self._pool = None
            self._changed.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no step is made."""
        try:
            with self._applying:
                yield
        except OSError:
            self._check()  # what was deleted cannot be written
            raise
        finally:
            self._settle()

    def _settle(self) -> None:
        """Close the journal of a group that has ended, unless somebody is at work with it: who then calls this."""
        while self._ended is not None and not self._settled and self._applying.acquire(blocking=False):
            try:
                if not self._settled:
                    self._settled = True
                    self._journal.close()
            finally:
                self._applying.release()

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended()

    def _alive(self) -> Consistency:
        self._check()
        assert self._way is not None
        return self._way

    def _loaded(self) -> Consistency:
        way = self._alive()
        if not self._digest:
            raise FailedPrecondition(f"{self.name} has no values yet: load them first", reason="GROUP_EMPTY")
        return way

    def _member(self, worker: int) -> Member:
        if not 0 <= worker < self.definition.workers:
            raise Invalid(
                f"worker {worker} is none of the ranks 0 to {self.definition.workers - 1}",
                reason="UNKNOWN_RANK",
                violations={"header.worker": "is not a rank of the group"},
            )
        return self._members[worker]

    def _waits_for(self, wish: Wish) -> str:
        return self._alive().waits_for(wish) if self._digest else "the first values"

    def _wait(self, wish: Wish, alive: Callable[[], bool]) -> None:
        waits = [] if wish.worker is None else self._members[wish.worker].waits
        while reason := self._waits_for(wish):
            if not alive():
                raise errors.Cancelled("nobody waits for the version any more")
            waits.append(reason)
            try:
                self._pause()
            finally:
                waits.remove(reason)

    def _pause(self) -> None:
        """Wait for a change; or do what is due by the time alone, for which nobody else may be there."""
        if self._alive().due():
            self._changed.release()
            try:
                self._apply(NOBODY)
            finally:
                self._changed.acquire()
        elif late := self._late():
            error = overdue(self.name, self._alive().version, late, self.definition.stragglers)
            self._end(error)
            raise error()
        else:
            self._changed.wait(self._patience())

    def _late(self) -> Sequence[int]:
        way = self._alive()
        return way.roll.overdue(way.arrived, way.time())

    def _patience(self) -> float | None:
        way = self._alive()
        # While a round closes, its end is what changes something.
        return None if way.busy(NOBODY) else way.roll.patience(way.arrived, way.time())

    def _repeated(self, header: Header, alive: Callable[[], bool]) -> Outcome:
        with self._changed:
            self._await(header, alive)
            return self._outcome(header, joined=False)

    def _outcome(self, header: Header, *, joined: bool) -> Outcome:
        """What has become of a push, which `joined` a round or not."""
        way = self._alive()
        closed = header.step < way.version
        dropped = closed and way.roll.missed(header.worker, header.step)
        self._members[header.worker].dropped += dropped
        self._duplicates += not joined and not dropped
        ranks = way.roll.made_of(header.step) if closed else ()
        return Outcome(not joined and not dropped, way.version, self._term, dropped, ranks)

    def _await(self, header: Header, alive: Callable[[], bool]) -> None:
        """Wait until a push that counts was applied, when its worker may forget it only then."""
        if not (self._journal.late and self.definition.consistency.rounds):
            return
        waits = self._members[header.worker].waits
        while self._alive().version <= header.step:
            later = self._members[header.worker].attempt
            if later > header.attempt:
                raise self._stale(header.worker, header.attempt, later)
            if not alive():
                raise errors.Cancelled("nobody waits for the push any more")
            waits.append(reason := f"the round of step {header.step}")
            try:
                self._pause()
            finally:
                waits.remove(reason)  # the worker's pull may wait as well

    def _stage(self, header: Header) -> Staging | None:
        """Where this push may put its blocks; None when it is a repetition."""
        codec = catalogue.make(header.codec, header.codec_parameters) if header.codec else None
        with self._changed:
            joins = self._joins(header)
            member = self._member(header.worker)
            if not joins:
                member.attempt = header.attempt
                return None
            if member.staging is not None:
                attempt, other = member.staging
                if attempt > header.attempt:
                    raise self._stale(header.worker, header.attempt, attempt)
                # The worker began again while its broken stream was not yet noticed here: one buffer a worker.
                other.drop(superseded)
            subject = {"worker": str(header.worker), "step": str(header.step)}
            staging = Staging(self.part, subject, codec, self._pool)
            member.staging = header.attempt, staging
            return staging

    def _unstage(self, worker: int, staging: Staging) -> None:
        with self._changed:
            member = self._members[worker]
            if member.staging is not None and member.staging[1] is staging:
                member.staging = None

    def _joins(self, header: Header) -> bool:
        """Whether a push brings something new; False for a repetition."""
        self._check()
        member = self._member(header.worker)
        if header.attempt < member.attempt:
            raise self._stale(header.worker, header.attempt, member.attempt)
        member.seen = self._clock.now()
        self._term = max(self._term, header.term)
        return self._loaded().joins(header)

    def _stale(self, worker: int, attempt: int, later: int) -> Stale:
        return Stale(
            f"worker {worker} was replaced: attempt {attempt} is over, {later} is at work",
            reason="STALE_ATTEMPT",
            metadata={"worker": str(worker), "attempt": str(later)},
        )

    def _commit(self, header: Header, staging: Staging, gradients: Array, alive: Callable[[], bool]) -> Outcome:
        with self._changed:
            while self._alive().busy(header):
                self._changed.wait()
            member = self._members[header.worker]
            if member.staging is None or member.staging[1] is not staging:
                raise superseded()
            joins = self._joins(header)
            member.attempt = header.attempt
            way = self._alive()
            if not joins or not way.accept(header, gradients, staging.rows):
                member.staging = None  # it has its place: another stream of this worker finds it there
                self._changed.notify_all()
                del way, gradients
                self._await(header, alive)
                return self._outcome(header, joined=joins)
        del way, gradients
        version = self._apply(header)
        with self._changed:
            ranks = self._way.roll.made_of(header.step) if self._way else ()
        return Outcome(False, version, self._term, ranks=ranks)

    def _apply(self, header: Header) -> int:
        """Apply what a push has completed; the version afterwards."""
        started, rounds = time.perf_counter(), self.definition.consistency.rounds
        with self._changed:
            way: Consistency | None = self._alive()
        assert way is not None
        try:
            with self._applying, self._tracer.start_as_current_span(attributes.SPAN_ROUND) as span:
                applied = self._recorded(way, header)
                span.set_attributes(
                    {
                        attributes.GROUP: self.name,
                        attributes.SHARD: self.definition.shard,
                        attributes.VERSION: applied.version,
                        attributes.SAMPLES: applied.samples,
                    }
                )
                with self._changed:
                    self._samples += applied.samples
                if rounds:
                    self._journal.sync()
                    self._done(way, header)
                with self._changed:
                    self._check()
                self._journal.roll(lambda: Beginning(saved=self._saved(), digest=self._digest))
            if not rounds:
                # Others go on meanwhile, and share the wait.
                self._journal.sync()
                self._done(way, header)
        except errors.TidemillError:
            raise
        except BaseException:
            # Part of the blocks may have changed: what the optimizer knows belongs to no version any more.
            name = self.name
            if self._ended is None:
                self._end(lambda: errors.Internal(f"the optimizer of {name} failed: delete it", reason="ROUND_FAILED"))
            raise
        finally:
            with self._changed:
                if self._ended is not None:
                    way.failed(header)
                self._changed.notify_all()
            way = None
            self._settle()
        self._closed(time.perf_counter() - started)
        return applied.version

    def _recorded(self, way: Consistency, header: Header) -> Applied:
        """Apply, and keep what is applied."""
        entries = way.entries(header)
        version = sum(way.applied()) if not self.definition.consistency.rounds else way.version
        with self._journal.record(entries, version, self.part.elements + way.tail) as record:
            return way.apply(header, record)

    def _done(self, way: Consistency, header: Header) -> None:
        with self._changed:
            self._check()
            way.done(header)
            self._changed.notify_all()

    def _saved(self, *, parameters: bool = True) -> Saved:
        """All there is to know after the last step; while none is made."""
        with self._changed:
            way, samples = self._alive(), self._samples
            attempts = [member.attempt for member in self._members]
        return way.saved(attempts, samples, parameters=parameters)
