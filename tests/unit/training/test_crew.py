"""What becomes of workers that die, are silent, or cannot be started, with time moved by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.training.crew import Crew, Patience
from tidemill.training.jobs import Worker
from tidemill.training.launchers.base import Launcher, Output, Process
from tidemill.training.logs import JobLog, Limits
from tidemill.training.meter import Beat
from tidemill.training.placement import JobFailed

START, SILENCE = 100.0, 10.0


class FakeProcess(Process):
    """A process that ends when the test says so."""

    def __init__(self, number: int, output: Output) -> None:
        self.number = number
        self.output = output
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stopped_after: float | None = None
        self.forgotten = False

    @property
    def pid(self) -> int:
        return self.number

    async def wait(self) -> int:
        return await asyncio.shield(self.status)

    async def stop(self, grace: float | None = None) -> None:
        self.stopped_after = grace
        if not self.status.done():
            self.status.set_result(-9)

    async def forget(self) -> None:
        self.forgotten = True


class FakeLauncher(Launcher):
    """Starts fake processes; refuses while it is told to."""

    def __init__(self) -> None:  # without settings
        self.processes: list[FakeProcess] = []
        self.environments: list[Mapping[str, str]] = []
        self.handles: list[str] = []
        self.refusals: list[errors.TidemillError] = []
        self.found: dict[str, FakeProcess] = {}
        self.asked: list[tuple[str, int]] = []

    async def launch(self, job: str, handle: str, environment: Mapping[str, str], output: Output) -> Process:
        if self.refusals:
            raise self.refusals.pop()
        self.environments.append(environment)
        self.handles.append(handle)
        self.processes.append(FakeProcess(len(self.processes) + 1, output))
        return self.processes[-1]

    async def adopt(self, job: str, handle: str, output: Output, position: int) -> Process | None:
        self.asked.append((handle, position))
        if self.refusals:
            raise self.refusals.pop()
        if found := self.found.get(handle):
            found.output = output
        return found

    async def clean(self, job: str, *, paused: bool = False) -> None:
        raise AssertionError("not the crew's business")

    async def sweep(self, jobs: Collection[str]) -> None:
        raise AssertionError("not the crew's business")


class FakeBoss:
    """Allows so many replacements."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.reasons: list[str] = []
        self.attempts: dict[int, int] = {}
        self.excused: Callable[[int, int | None], bool] = lambda rank, status: status == 0

    def environment(self, rank: int) -> Mapping[str, str]:
        return {"RANK": str(rank)}

    def excuses(self, rank: int, status: int | None) -> bool:
        return self.excused(rank, status)

    async def replace(self, rank: int, reason: str, traceback: str) -> Worker:
        self.reasons.append(reason)
        if len(self.reasons) > self.most:
            raise JobFailed(reason)
        self.attempts[rank] = self.attempts.get(rank, 0) + 1
        return Worker(rank=rank, attempt=self.attempts[rank], handle=f"{rank}.{self.attempts[rank]}")


class Scene:
    """A crew at work."""

    def __init__(self, folder: Path, ranks: int, boss: FakeBoss) -> None:
        self.clock = ManualClock()
        self.launcher = FakeLauncher()
        self.boss = boss
        self.log = JobLog(folder / "log", self.clock, Limits())
        self.crew = Crew(
            "job",
            [Worker(rank=rank) for rank in range(ranks)],
            self.launcher,
            boss,
            self.log,
            Patience(start=START, heartbeat=SILENCE),
            self.clock,
        )
        self.work = asyncio.create_task(self.crew.run())

    async def started(self, count: int) -> FakeProcess:
        """The last process, once so many were started in all."""
        await until(lambda: len(self.launcher.processes) >= count)
        await asyncio.sleep(0)
        return self.launcher.processes[-1]

    async def printed(self) -> list[str]:
        return [line.text for line in await self.log.read(0)]


@contextmanager
def crew_of(
    folder: Path,
    launcher: FakeLauncher,
    workers: list[Worker],
    boss: FakeBoss | None = None,
    clock: ManualClock | None = None,
) -> Iterator[Crew]:
    """A crew that is not at work yet."""
    clock = clock or ManualClock()
    log = JobLog(folder / "log", clock, Limits())
    yield Crew("job", workers, launcher, boss or FakeBoss(), log, Patience(start=START, heartbeat=SILENCE), clock)
    log.close()


@asynccontextmanager
async def scene(folder: Path, ranks: int = 1, boss: FakeBoss | None = None) -> AsyncIterator[Scene]:
    set_up = Scene(folder, ranks, boss or FakeBoss())
    try:
        yield set_up
    finally:
        set_up.work.cancel()
        with suppress(asyncio.CancelledError, JobFailed, errors.TidemillError):
            await set_up.work
        await set_up.crew.stop()
        set_up.log.close()


async def test_it_works_until_every_rank_has_done_its_part(tmp_path: Path) -> None:
    async with scene(tmp_path, ranks=3) as stage:
        await stage.started(3)
        assert [worker.pid for worker in stage.crew.workers()] == [1, 2, 3]
        for process in stage.launcher.processes[:2]:
            process.status.set_result(0)
        await asyncio.sleep(0)
        assert not stage.work.done()
        stage.launcher.processes[2].status.set_result(0)
        async with asyncio.timeout(10):
            await stage.work
        assert {(worker.pid, worker.phase) for worker in stage.crew.workers()} == {(0, "ended")}


async def test_a_dead_process_is_replaced_and_its_successor_alone_is_heard(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        first = await stage.started(1)
        stage.crew.beat(0, 0, Beat(phase="training", step=5))
        first.output("last words", 10)
        first.status.set_result(-9)
        await stage.started(2)
        assert stage.launcher.environments[1] == {"RANK": "0"}
        assert stage.launcher.handles[1] == "0.1"
        assert first.forgotten, "it is not asked for any more"
        assert stage.boss.reasons == ["worker 0 was killed by SIGKILL; it printed last:\nlast words"]
        with pytest.raises(errors.Stale) as replaced:
            stage.crew.beat(0, 0, Beat(phase="training"))
        assert replaced.value.reason == "WORKER_REPLACED"
        with pytest.raises(errors.Stale):
            stage.crew.member(7, 0)
        stage.crew.beat(0, 1, Beat(phase="training", step=2))
        (worker,) = stage.crew.workers()
        assert (worker.attempt, worker.step, worker.phase) == (1, 2, "training")
        assert "worker 0, attempt 0: was killed by SIGKILL" in await stage.printed()


async def test_a_silent_process_is_killed_and_replaced(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        first = await stage.started(1)
        await stage.clock.advance(START - 1)
        assert not first.status.done(), "at the start it may be silent for longer"
        for _ in range(5):
            stage.crew.beat(0, 0, Beat(phase="training"))
            await stage.clock.advance(SILENCE - 1)
        assert not first.status.done()
        await stage.clock.advance(2)
        await stage.started(2)
        assert first.stopped_after == 0, "it is not asked first"
        assert stage.boss.reasons == ["worker 0 gave no sign of life for 10 s and was killed"]


async def test_less_silence_is_allowed_from_the_first_sign_of_life_on(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        first = await stage.started(1)
        stage.crew.beat(0, 0, Beat(phase="starting"))
        await stage.clock.advance(SILENCE * 2)
        assert first.status.done()


async def test_a_process_that_never_says_anything_is_replaced_in_the_end(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        await stage.started(1)
        await stage.clock.advance(START + 1)
        await stage.started(2)
        assert stage.boss.reasons == ["worker 0 gave no sign of life for 100 s and was killed"]


async def test_processes_that_die_at_once_are_not_started_in_a_busy_loop(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        pauses = []
        for number in range(1, 8):
            (await stage.started(number)).status.set_result(1)
            before = stage.clock.monotonic()
            while len(stage.launcher.processes) == number:
                await stage.clock.advance(0.125)
            pauses.append(stage.clock.monotonic() - before)
        assert pauses[0] <= 0.125, "the first one is replaced at once"
        assert pauses[1:] == sorted(pauses[1:])
        assert 4 <= pauses[-1] <= 5.2


async def test_too_many_deaths_end_the_work_with_the_last_reason(tmp_path: Path) -> None:
    async with scene(tmp_path, ranks=2, boss=FakeBoss(most=0)) as stage:
        await stage.started(2)
        stage.crew.member(1, 0).failure = "the disk is full"
        stage.launcher.processes[1].status.set_result(1)
        with pytest.raises(JobFailed, match="worker 1: the disk is full"):
            await stage.work
        await stage.crew.stop()
        assert stage.launcher.processes[0].status.done(), "the others end as well"


async def test_a_launch_that_may_succeed_later_is_tried_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.launcher.refusals = [errors.Unavailable("no more processes")]
        await asyncio.sleep(0)
        await stage.clock.advance(1)
        await stage.started(1)
        assert stage.boss.reasons[0].startswith("worker 0 no more processes")


async def test_a_launch_that_would_fail_again_ends_the_work(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.launcher.refusals = [errors.FailedPrecondition("no such program")]
        with pytest.raises(errors.FailedPrecondition, match="no such program"):
            await stage.work


async def test_stopping_ends_every_process(tmp_path: Path) -> None:
    async with scene(tmp_path, ranks=4) as stage:
        await stage.started(4)
        stage.work.cancel()
        with suppress(asyncio.CancelledError):
            await stage.work
        await stage.crew.stop(3.0)
        assert [process.stopped_after for process in stage.launcher.processes] == [3.0] * 4
        assert all(worker.pid == 0 for worker in stage.crew.workers())


def found(*handles: str) -> FakeLauncher:
    """A launcher under which these run already."""
    launcher = FakeLauncher()
    launcher.found = {handle: FakeProcess(100 + number, lambda *_: None) for number, handle in enumerate(handles)}
    return launcher


async def test_who_is_at_work_already_goes_on(tmp_path: Path) -> None:
    launcher = found("0.0", "1.0")
    log = JobLog(tmp_path / "log", ManualClock(), Limits())
    log.append(1, "before", attempt=0, position=7)
    log.close()
    workers = [Worker(rank=rank, handle=f"{rank}.0", step=40 + rank) for rank in range(2)]
    with crew_of(tmp_path, launcher, workers) as crew:
        await crew.adopt()
        assert crew.vacant() == []
        assert launcher.asked == [("0.0", 0), ("1.0", 7)], "its output goes on behind what is kept of it"
        assert [(worker.pid, worker.step) for worker in crew.workers()] == [(100, 40), (101, 41)]
        work = asyncio.create_task(crew.run())
        crew.beat(1, 0, Beat(phase="training", step=50))
        for process in launcher.found.values():
            process.status.set_result(0)
        await work
        assert not launcher.processes, "nobody was started"
        await crew.stop()


async def test_ranks_of_which_nobody_is_found_are_vacant(tmp_path: Path) -> None:
    launcher = found("1.0")
    boss = FakeBoss()
    boss.excused = lambda rank, status: rank == 2
    with crew_of(tmp_path, launcher, [Worker(rank=rank, handle=f"{rank}.0") for rank in range(3)], boss) as crew:
        await crew.adopt()
        assert crew.vacant() == [0], "who has done its part needs nobody"
        crew.appoint([Worker(rank=0, attempt=1, handle="0.1")])
        work = asyncio.create_task(crew.run())
        await until(lambda: launcher.processes)
        assert launcher.handles == ["0.1"], "nobody is started twice under one handle"
        assert not launcher.found["1.0"].status.done()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await crew.stop()
        assert launcher.found["1.0"].status.result() == -9


async def test_stopping_ends_also_those_that_were_not_looked_for_yet(tmp_path: Path) -> None:
    launcher = found("0.0")
    with crew_of(tmp_path, launcher, [Worker(rank=0, handle="0.0")]) as crew:
        await crew.stop(2.0)
        assert launcher.found["0.0"].stopped_after == 2.0


async def test_a_launcher_that_cannot_say_is_asked_again(tmp_path: Path) -> None:
    launcher, clock = found("0.0"), ManualClock()
    launcher.refusals = [errors.Unavailable("no cluster")] * 2
    with crew_of(tmp_path, launcher, [Worker(rank=0, handle="0.0")], clock=clock) as crew:
        adopting = asyncio.create_task(crew.adopt())
        for _ in range(20):
            await clock.advance(1)
        await adopting
        assert crew.vacant() == []
        await crew.stop()
