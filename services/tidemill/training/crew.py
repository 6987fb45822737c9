"""The worker processes of one job: started, watched, replaced when they die, and ended together."""

import asyncio
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tidemill.clock import Clock
from tidemill.errors import Stale, Unavailable
from tidemill.training.jobs import Worker, shortened
from tidemill.training.launchers.base import Launcher, Process
from tidemill.training.logs import SERVICE, JobLog
from tidemill.training.meter import Beat

LOG = logging.getLogger(__name__)
ENDED = "ended"
STARTING = "starting"
_TAIL = 12
_LONGEST_PAUSE = 5.0


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
    deadline: float = 0.0
    process: Process | None = None
    step: int = 0
    heartbeat: float = 0.0
    phase: str = STARTING
    failure: str = ""
    """Why it cannot go on, in its own words."""
    tail: list[str] = field(default_factory=list)
    """The last lines that it has printed."""


class Boss(Protocol):
    """Whom a crew works for."""

    def environment(self, rank: int, attempt: int) -> Mapping[str, str]:
        """Variables for the process that gets a rank, with a token of its own."""

    def excuses(self, rank: int, status: int | None) -> bool:
        """Whether a rank has done its part, now that its process has ended (or is silent: status None)."""

    async def replace(self, rank: int, reason: str) -> int:
        """Remember that the process of a rank is to be replaced; the new attempt. Raises when it must not be."""


class Crew:
    """The processes of one job.

    Args:
        job: uid of the job.
        attempts: attempt of each rank to begin with.
        launcher: starts them.
        boss: decides about them.
        log: takes what they print.
        patience: how long they may be silent.
        clock: what deadlines go by.
    """

    def __init__(
        self,
        job: str,
        attempts: Mapping[int, int],
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
        self._members = {rank: Member(rank=rank, attempt=attempt) for rank, attempt in attempts.items()}

    def workers(self) -> tuple[Worker, ...]:
        """The processes as they are now, in order of rank."""
        return tuple(
            Worker(
                rank=member.rank,
                attempt=member.attempt,
                pid=member.process.pid if member.process else 0,
                step=member.step,
                heartbeat=member.heartbeat,
                phase=member.phase,
            )
            for _, member in sorted(self._members.items())
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
        return member

    def beat(self, rank: int, attempt: int, beat: Beat) -> None:
        """Take a sign of life. Raises Stale as `member` does."""
        member = self.member(rank, attempt)
        member.step, member.phase = beat.step, beat.phase[:64]

    async def run(self) -> None:
        """Keep every rank at work until it has done its part; raise what the boss raises."""
        keepers = [asyncio.ensure_future(self._keep(member)) for member in self._members.values()]
        try:
            await _all(keepers)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def stop(self, grace: float | None = None) -> None:
        """End every process; none is left on return. `run` must have ended."""
        processes = [member.process for member in self._members.values() if member.process]
        await asyncio.gather(*(process.stop(grace) for process in processes))
        for member in self._members.values():
            member.process, member.phase = None, ENDED

    async def _keep(self, member: Member) -> None:
        pause = 0.0
        while True:
            reason = await self._work(member)
            if not reason:
                return
            self._log.append(SERVICE, f"worker {member.rank}, attempt {member.attempt}: {reason}")
            await self._clock.sleep(pause)  # one that dies at once must not be started in a busy loop
            pause = min(max(2 * pause, 0.25), _LONGEST_PAUSE)
            member.attempt = await self._boss.replace(member.rank, self._cause(member, reason))

    def _cause(self, member: Member, reason: str) -> str:
        if member.failure:
            return f"worker {member.rank}: {member.failure}"
        printed = "\n".join(member.tail)
        return shortened(f"worker {member.rank} {reason}" + (f"; it printed last:\n{printed}" if printed else ""))

    async def _work(self, member: Member) -> str:
        """One process from start to end; why it has to be replaced, or "" when the rank has done its part."""
        member.phase, member.step, member.heartbeat, member.failure, member.tail = STARTING, 0, 0.0, "", []
        member.deadline = self._clock.monotonic() + self._patience.start
        environment = self._boss.environment(member.rank, member.attempt)
        try:
            process = await self._launcher.launch(
                self._job,
                f"{member.rank}.{member.attempt}",
                environment,
                lambda line, _: self._printed(member, line),
            )
        except Unavailable as error:
            return error.message
        member.process = process
        status = await self._watch(member, process)
        member.process, member.phase = None, ENDED
        if self._boss.excuses(member.rank, status):
            return ""
        if status is None:
            limit = self._patience.heartbeat if member.heartbeat else self._patience.start
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

    def _printed(self, member: Member, line: str) -> None:
        self._log.append(member.rank, line)
        member.tail = [*member.tail[1 - _TAIL :], line[:400]]


async def _all(tasks: Sequence["asyncio.Future[None]"]) -> None:
    """Wait until all have ended well; raise the first error as soon as it is there."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
