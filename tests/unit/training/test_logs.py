"""Logs are numbered without gaps, bounded, and survive whoever writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.clock import ManualClock
from tidemill.training.logs import MAX_TEXT, SERVICE, JobLog, Limits, LogDirectory


@contextmanager
def log(path: Path, **limits: int) -> Iterator[JobLog]:
    opened = JobLog(path, ManualClock(), Limits(**limits))
    try:
        yield opened
    finally:
        opened.close()


async def texts(job: JobLog, first: int = 0) -> list[str]:
    found: list[str] = []
    while lines := await job.read(first + len(found)):
        assert [line.line for line in lines] == list(range(first + len(found), first + len(found) + len(lines)))
        found += [line.text for line in lines]
    return found


async def test_lines_come_back_with_time_and_rank(tmp_path: Path) -> None:
    with log(tmp_path / "a.log") as job:
        job.append(3, "ünï\tcode \u2028 and 1 2 3")
        job.append(SERVICE, "two\nlines")
        job.append(0, "")
    first, second, third, fourth = await job.read(0)
    assert (first.rank, first.text, first.time) == (3, "ünï\tcode \u2028 and 1 2 3", 1_700_000_000.0)
    assert [(line.rank, line.text) for line in (second, third, fourth)] == [(-1, "two"), (-1, "lines"), (0, "")]
    assert await job.read(4) == []


async def test_any_line_can_be_the_first(tmp_path: Path) -> None:
    with log(tmp_path / "a.log") as job:
        for number in range(1000):
            job.append(0, f"line {number}")
    for first in (0, 1, 255, 256, 257, 511, 999, 1000):
        assert await texts(job, first) == [f"line {number}" for number in range(first, 1000)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(kept=st.integers(0, 40), torn=st.binary(max_size=20).filter(lambda raw: b"\n" not in raw))
async def test_what_a_killed_writer_left_unfinished_does_not_count(tmp_path: Path, kept: int, torn: bytes) -> None:
    path = tmp_path / "a.log"
    path.unlink(missing_ok=True)
    with log(path) as before:
        for number in range(kept):
            before.append(0, f"line {number}")
    with path.open("ab") as file:
        file.write(torn)
    with log(path) as after:
        after.append(1, "next")
    assert await texts(after) == [*(f"line {number}" for number in range(kept)), "next"]
    with log(path) as reader:
        assert await texts(reader) == await texts(after)


async def test_a_log_that_is_full_hears_the_service_alone(tmp_path: Path) -> None:
    for limits in ({"lines": 10}, {"bytes": 200}):
        path = tmp_path / f"{next(iter(limits))}.log"
        with log(path, **limits) as job:
            for number in range(10_000):
                job.append(0, f"line {number}")
            job.append(SERVICE, "the end")
            found = await texts(job)
            assert found[-2:] == ["the log is full: further lines of workers are not kept", "the end"]
            assert path.stat().st_size < 1000
            for _ in range(10_000):
                job.append(SERVICE, "again")
            assert job.lines < 1100


async def test_long_lines_are_cut(tmp_path: Path) -> None:
    with log(tmp_path / "a.log") as job:
        job.append(0, "x" * 100_000)
    assert [len(text) for text in await texts(job)] == [MAX_TEXT]


async def test_a_disk_that_fails_costs_lines_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with log(tmp_path / "file" / "a.log") as job:
        job.append(0, "lost")
        assert job.lines == 0
        assert await job.read(0) == []


async def test_readers_are_woken(tmp_path: Path) -> None:
    with log(tmp_path / "a.log") as job, job.grown() as grown:
        job.append(0, "x")
        assert grown.is_set()
        grown.clear()
        job.close()
        assert grown.is_set()
        job.append(0, "too late")
        assert await texts(job) == ["x"]


async def test_the_directory_keeps_one_writer_a_job(tmp_path: Path) -> None:
    logs = LogDirectory(tmp_path / "logs", ManualClock(), Limits())
    assert await logs.find("a") is None
    writer = await logs.open("a")
    assert await logs.open("a") is writer
    writer.append(0, "x")
    assert await logs.find("a") is writer
    logs.close("a")
    reader = await logs.find("a")
    assert reader is not None
    assert reader is not writer
    assert await texts(reader) == ["x"]
    await logs.delete("a")
    assert await logs.find("a") is None
    await logs.delete("a")
