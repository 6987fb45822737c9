"""The worker processes of one job: started or found again, watched, replaced when they die, and ended together."""

import asyncio
import logging
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tidemill.clock import Clock
from tidemill.errors import Stale, Unavailable
from tidemill.training.diagnosis.sights import Condition, WorkerSight
from tidemill.training.jobs import Worker, shortened
from tidemill.training.launchers.base import Launcher, Process
from tidemill.training.logs import SERVICE, JobLog
from tidemill.training.meter import Beat
from tidemill.training.patience import patiently

LOG = logging.getLogger(__name__)
ENDED = "ended"
STARTING = "starting"
SILENT = 5.0
"""Seconds after which who gives no sign of life, although one is due each second, is called silent."""
_SMOOTH = 4
"""Number of beats over which the pace of a worker is averaged."""
_TAIL = 12
_LONGEST_PAUSE = 5.0
_FIND = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long workers may be silent, in seconds."""

    start: float
    """From its start to its first sign of life."""
    heartbeat: float
    """Between two signs of life."""


@dataclass(slots=True, kw_only=True)
class Member:
    """A rank and the process that has it now."""

    rank: int
    attempt: int
    handle: str = ""
    token: str = ""
    """Digest of its secret."""
    deadline: float = 0.0
    process: Process | None = None
    is_known: bool = True
    """Whether `process` is all that may run under the handle."""
    is_heard: bool = False
    """Whether this process has given a sign of life to us."""
    step: int = 0
    heartbeat: float = 0.0
    phase: str = STARTING
    samples: int = 0
    failure: str = ""
    """Why it cannot go on, in its own words."""
    traceback: str = ""
    """Where its code was then."""
    seated: float = 0.0
    moved: float = 0.0
    """When this process got the rank, and came to its step or phase, on the monotonic clock."""
    pace: float = 0.0
    """Seconds that its steps take of late; 0 = not known."""
    tail: list[str] = field(default_factory=list)
    """The last lines that it has printed."""


class Boss(Protocol):
    """Whom a crew works for."""

    def environment(self, rank: int) -> Mapping[str, str]:
        """Variables for the process that gets a rank, with the token that it was appointed with."""

    def excuses(self, rank: int, status: int | None) -> bool:
        """Whether a rank has done its part, now that its process has ended (or is silent: status None)."""

    async def replace(self, rank: int, reason: str, traceback: str) -> Worker:
        """Store that the process of a rank is to be replaced, and by whom. Raises when it must not be.

        Args:
            rank: the rank.
            reason: why.
            traceback: where the code of the process was, if it has told.
        """


class Crew:
    """The processes of one job.

    Args:
        job: uid of the job.
        workers: the ranks; those with a handle may be at work already, those with attempt -1 never were.
        launcher: starts them.
        boss: decides about them.
        log: takes what they print.
        patience: how long they may be silent.
        clock: what deadlines go by.
    """

    def __init__(
        self,
        job: str,
        workers: Iterable[Worker],
        launcher: Launcher,
        boss: Boss,
        log: JobLog,
        patience: Patience,
        clock: Clock,
    ) -> None:
        self._job = job
        self._launcher = launcher
        self._boss = boss
        self._log = log
        self._patience = patience
        self._clock = clock
        self._members: dict[int, Member] = {}
        self._joining: list[Member] = []
        """Those that nobody keeps at work yet."""
        self._grown = asyncio.Event()
        for worker in workers:
            self._members[worker.rank] = Member(rank=worker.rank, attempt=worker.attempt)
            self._seat(self._members[worker.rank], worker)
            self._members[worker.rank].is_known = not worker.handle

    def grow(self, workers: Iterable[Worker]) -> None:
        """These are to be started as well, with ranks that nobody has: that is stored."""
        for worker in workers:
            member = self._members[worker.rank] = Member(rank=worker.rank, attempt=worker.attempt)
            self._seat(member, worker)
            self._joining.append(member)
        self._grown.set()

    def appoint(self, workers: Iterable[Worker]) -> None:
        """These are to be started, in place of those who had their ranks: that is stored."""
        for worker in workers:
            self._seat(self._members[worker.rank], worker)

    def vacant(self) -> list[int]:
        """Ranks that no process has, although their part is not done."""
        return [
            rank
            for rank, member in sorted(self._members.items())
            if member.process is None and not self._boss.excuses(rank, None)
        ]

    async def adopt(self) -> None:
        """Look after those who are at work already, however long it takes to find them."""
        await asyncio.gather(*(self._adopt(member) for member in self._members.values() if not member.is_known))

    async def _adopt(self, member: Member) -> None:
        output = partial(self._printed, member, member.attempt)
        position = self._log.position(member.rank, member.attempt)
        member.process = await patiently(
            self._clock,
            f"looking for worker {member.rank}",
            lambda: self._launcher.adopt(self._job, member.handle, output, position),
        )
        member.is_known = True
        if member.process is None:
            member.phase = ENDED
        else:
            self._log.append(SERVICE, f"worker {member.rank}, attempt {member.attempt}: found again")

    def workers(self) -> tuple[Worker, ...]:
        """The processes as they are now, in order of rank; none of ranks that nobody was ever appointed to."""
        return tuple(
            Worker(
                rank=member.rank,
                attempt=member.attempt,
                pid=member.process.pid if member.process and member.phase != ENDED else 0,
                step=member.step,
                heartbeat=member.heartbeat,
                phase=member.phase,
                samples=member.samples,
                handle=member.handle,
                token=member.token,
            )
            for _, member in sorted(self._members.items())
            if member.attempt >= 0
        )

    def member(self, rank: int, attempt: int) -> Member:
        """The rank, if `attempt` is the process that has it now, which has just shown that it lives.

        Raises:
            Stale: reason WORKER_REPLACED, when another process has it.
        """
        member = self._members.get(rank)
        if member is None or member.attempt != attempt:
            raise Stale(f"another process has rank {rank} now: end", reason="WORKER_REPLACED")
        member.deadline = self._clock.monotonic() + self._patience.heartbeat
        member.heartbeat = self._clock.now()
        member.is_heard = True
        return member

    def beat(self, rank: int, attempt: int, beat: Beat) -> None:
        """Take a sign of life. Raises Stale as `member` does."""
        member = self.member(rank, attempt)
        now, steps = self._clock.monotonic(), beat.step - member.step
        if steps > 0 and beat.phase[:64] == member.phase:
            pace = (now - member.moved) / steps
            member.pace = pace if not member.pace else member.pace + (pace - member.pace) / _SMOOTH
        if steps or beat.phase[:64] != member.phase:
            member.moved = now
        member.step, member.phase, member.samples = beat.step, beat.phase[:64], beat.samples

    def sights(self) -> tuple[WorkerSight, ...]:
        """The processes as they are seen now, in order of rank; none of ranks that nobody was ever appointed to."""
        return tuple(self._sight(member) for _, member in sorted(self._members.items()) if member.attempt >= 0)

    def _sight(self, member: Member) -> WorkerSight:
        now = self._clock.monotonic()
        silence = now - member.seated
        if member.is_heard:
            silence = now - (member.deadline - self._patience.heartbeat)
        if member.phase == ENDED:
            condition = Condition.ENDED
        elif member.process is None:
            condition = Condition.ABSENT
        elif not member.heartbeat:
            condition = Condition.STARTING
        else:
            is_silent = silence > min(SILENT, self._patience.heartbeat / 2)
            condition = Condition.SILENT if is_silent else Condition.ALIVE
        return WorkerSight(
            rank=member.rank,
            attempt=member.attempt,
            condition=condition,
            phase=member.phase,
            step=member.step,
            pid=member.process.pid if member.process and member.phase != ENDED else 0,
            silence=silence if member.is_heard or not member.heartbeat else self._clock.now() - member.heartbeat,
            at_step=now - member.moved,
            pace=member.pace,
        )

    async def run(self) -> None:
        """Keep every rank at work until it has done its part; raise what the boss raises."""
        self._joining = list(self._members.values())
        keepers: set[asyncio.Future[None]] = set()
        grown: asyncio.Future[Any] = asyncio.ensure_future(self._grown.wait())
        try:
            while True:
                keepers |= {asyncio.ensure_future(self._keep(member)) for member in self._joining}
                self._joining = []
                self._grown.clear()
                if grown.done():
                    grown = asyncio.ensure_future(self._grown.wait())
                if not keepers:
                    return
                waiting: set[asyncio.Future[Any]] = {*keepers, grown}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for keeper in keepers & done:
                    keepers.remove(keeper)
                    keeper.result()
        finally:
            ending: list[asyncio.Future[Any]] = [*keepers, grown]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def ended(self, within: float) -> None:
        """Return when all processes have ended by themselves, or after so many seconds."""
        waiting = [asyncio.ensure_future(member.process.wait()) for member in self._members.values() if member.process]
        if waiting:
            await asyncio.wait(waiting, timeout=within)
        for each in waiting:
            each.cancel()

    async def stop(self, grace: float | None = None) -> None:
        """End every process, found again yet or not; none is left on return. `run` must have ended."""
        with suppress(TimeoutError):  # who cannot be found now is ended by its launcher as abandoned
            async with asyncio.timeout(_FIND):
                await self.adopt()
        processes = [member.process for member in self._members.values() if member.process]
        await asyncio.gather(*(process.stop(grace) for process in processes))
        for member in self._members.values():
            member.process, member.phase = None, ENDED

    async def _keep(self, member: Member) -> None:
        pause = 0.0
        if member.process is None and self._boss.excuses(member.rank, None):
            return
        while True:
            reason = await self._work(member)
            if not reason:
                return
            self._log.append(SERVICE, f"worker {member.rank}, attempt {member.attempt}: {reason}")
            await self._clock.sleep(pause)  # one that dies at once must not be started in a busy loop
            pause = min(max(2 * pause, 0.25), _LONGEST_PAUSE)
            ended, member.process = member.process, None
            cause = self._cause(member, reason)
            self._seat(member, await self._boss.replace(member.rank, cause, member.traceback))
            if ended is not None:
                await ended.forget()

    def _seat(self, member: Member, worker: Worker) -> None:
        """A rank gets the process of this record, which is to be started or found again."""
        member.attempt, member.handle, member.token = worker.attempt, worker.handle, worker.token
        member.step, member.heartbeat, member.samples = worker.step, worker.heartbeat, worker.samples
        member.phase, member.failure, member.traceback = worker.phase or STARTING, "", ""
        member.tail, member.is_heard, member.pace = [], False, 0.0
        member.seated = member.moved = self._clock.monotonic()
        member.deadline = self._clock.monotonic() + self._patience.start

    def _cause(self, member: Member, reason: str) -> str:
        if member.failure:
            return f"worker {member.rank}: {member.failure}"
        printed = "\n".join(member.tail)
        return shortened(f"worker {member.rank} {reason}" + (f"; it printed last:\n{printed}" if printed else ""))

    async def _work(self, member: Member) -> str:
        """One process from start to end; why it has to be replaced, or "" when the rank has done its part."""
        member.deadline = self._clock.monotonic() + self._patience.start
        if member.process is None:
            environment = self._boss.environment(member.rank)
            output = partial(self._printed, member, member.attempt)
            member.is_known = False
            try:
                member.process = await self._launcher.launch(self._job, member.handle, environment, output)
            except Unavailable as error:
                member.is_known = True
                return error.message
            member.is_known = True
        status = await self._watch(member, member.process)
        member.phase = ENDED
        if self._boss.excuses(member.rank, status):
            return ""
        if status is None:
            limit = self._patience.heartbeat if member.is_heard else self._patience.start
            return f"gave no sign of life for {limit:g} s and was killed"
        return f"was killed by {_name(-status)}" if status < 0 else f"ended with status {status}"

    async def _watch(self, member: Member, process: Process) -> int | None:
        """The exit status of a process, or None when it was silent for too long and had to be killed."""
        ended = asyncio.ensure_future(process.wait())
        try:
            while (left := member.deadline - self._clock.monotonic()) > 0:
                # The deadline may come closer: from the first sign of life on, less silence is allowed.
                timer = asyncio.ensure_future(self._clock.sleep(min(left, self._patience.heartbeat)))
                try:
                    await asyncio.wait({ended, timer}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    timer.cancel()
                if ended.done():
                    return ended.result()
            await process.stop(0)
            return None
        finally:
            ended.cancel()

    def _printed(self, member: Member, attempt: int, line: str, position: int) -> None:
        self._log.append(member.rank, line, attempt=attempt, position=position)
        member.tail = [*member.tail[1 - _TAIL :], line[:400]]


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
