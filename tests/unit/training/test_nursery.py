"""What workers are forked from: it is asked for nothing but workers, and may end at any time."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.training import lives
from tests.support.wait import until
from tidemill.training.launchers.base import Settings
from tidemill.training.launchers.local import Local
from tidemill.training.nursery import Nursery

CODE = "import os; print(os.getpid(), os.getppid(), os.getsid(0))"
PROGRAM = (sys.executable, "-c", CODE)
TEMPLATE = (sys.executable, "-m", "tests.support.program_template", *PROGRAM)
REAL = (sys.executable, "-m", "tidemill.training.worker.template")


@asynccontextmanager
async def launching(
    folder: Path, template: tuple[str, ...], command: tuple[str, ...] = PROGRAM
) -> AsyncIterator[Local]:
    launcher = Local(Settings(command=command, template=template, threads=1, grace=1.0, scratch=folder))
    try:
        yield launcher
    finally:
        await launcher.close()


async def printed(launcher: Local, handle: str, status: int = 0) -> list[str]:
    """All that one worker prints."""
    lines: list[str] = []
    process = await launcher.launch("job", handle, {}, lambda line, _: lines.append(line))
    assert await process.wait() == status
    return lines


async def test_workers_have_one_parent_to_be_and_a_keeper_each(tmp_path: Path) -> None:
    async with launching(tmp_path, TEMPLATE) as launcher:
        for handle in ("0.0", "1.0"):
            [line] = await printed(launcher, handle)
            worker, parent, session = map(int, line.split())
            keeper = (tmp_path / "job" / f"keeper-{handle}" / "pid").read_text().split()[2]
            assert (parent, session) == (int(keeper), worker)
        template = launcher._nursery.pid
        assert lives(template)
    assert not lives(template)


async def test_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async with launching(tmp_path, TEMPLATE) as launcher:
        await printed(launcher, "0.0")
        template = launcher._nursery.pid
        os.kill(template, signal.SIGKILL)
        await until(lambda: not lives(template))
        assert await printed(launcher, "0.1")
        assert launcher._nursery.pid not in (0, template)


async def test_one_that_ends_for_want_of_work_is_replaced(tmp_path: Path) -> None:
    nursery = Nursery(TEMPLATE, {"PATH": os.environ["PATH"]}, idle=0.1)
    assert await nursery.ready()
    first = nursery.pid
    await until(lambda: not lives(first))
    assert await nursery.ready()
    assert nursery.pid != first
    await nursery.close()
    assert not await nursery.ready()


@pytest.mark.parametrize(
    "template",
    [("/no/such/program",), (sys.executable, "-c", "raise SystemExit(3)"), ()],
    ids=["missing", "unfit", "none"],
)
async def test_workers_are_started_without_one(
    tmp_path: Path, template: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with launching(tmp_path, template) as launcher:
        assert await printed(launcher, "0.0")
        assert await printed(launcher, "1.0")
    assert caplog.text.count("cannot be forked") == (1 if template else 0)


async def test_orders_that_are_too_large_go_another_way(tmp_path: Path) -> None:
    async with launching(tmp_path, TEMPLATE) as launcher:
        lines: list[str] = []
        many = {f"TIDEMILL_WORKER_{number}": "x" * 1000 for number in range(200)}
        process = await launcher.launch("job", "0.0", many, lambda line, _: lines.append(line))
        assert await process.wait() == 0
        assert len(lines) == 1
        assert await printed(launcher, "1.0"), "the next one is forked"


async def test_the_real_one_makes_real_workers(tmp_path: Path) -> None:
    """This one has no orders: it says so, as one that was started by itself does."""
    async with launching(tmp_path, REAL, (sys.executable, "-m", "tidemill.training.worker")) as launcher:
        forked = await printed(launcher, "0.0", status=2)
        assert launcher._nursery.pid
    async with launching(tmp_path, (), (sys.executable, "-m", "tidemill.training.worker")) as launcher:
        assert await printed(launcher, "1.0", status=2) == forked
    assert forked
