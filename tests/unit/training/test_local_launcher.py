"""Worker processes: their output, their environment, and their end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.training import lives
from tests.support.wait import until
from tidemill import errors
from tidemill.training.launchers.base import MAX_LINE, Process, Settings
from tidemill.training.launchers.local import Local

FORKED = (sys.executable, "-m", "tests.support.program_template")


def template_of(command: tuple[str, ...], way: str) -> tuple[str, ...]:
    """What forks such programs, if they are to be forked and can be."""
    return (*FORKED, *command) if way == "fork" and command[1:2] == ("-c",) else ()


class Launch:
    """A program, and what it has printed."""

    way = "exec"
    made: ClassVar[list["Launch"]] = []

    def __init__(
        self, tmp_path: Path, code: str = "", command: tuple[str, ...] = (), grace: float = 5.0, **settings: Any
    ) -> None:
        self.lines: list[str] = []
        self.positions: list[int] = []
        self.folder = tmp_path / "scratch" / "job"
        command = command or (sys.executable, "-c", code)
        self.made.append(self)
        self.launcher = Local(
            Settings(
                command=command,
                template=template_of(command, self.way),
                threads=3,
                grace=grace,
                scratch=tmp_path / "scratch",
                **settings,
            )
        )

    def take(self, line: str, position: int) -> None:
        self.lines.append(line)
        self.positions.append(position)

    async def start(self, **environment: str) -> Process:
        return await self.launcher.launch("job", "0.0", environment, self.take)

    async def adopt(self, position: int = 0) -> Process | None:
        return await self.launcher.adopt("job", "0.0", self.take, position)

    def keeper(self) -> int:
        """Process id of its keeper."""
        return int((self.folder / "keeper-0.0" / "pid").read_text().split()[2])


@pytest.fixture(params=["exec", "fork"], autouse=True)
async def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """How workers come to be; all that they are started from is ended with the test."""
    monkeypatch.setattr(Launch, "way", request.param)
    yield request.param
    while Launch.made:
        await Launch.made.pop().launcher.close()


async def test_output_and_status(tmp_path: Path) -> None:
    launch = Launch(
        tmp_path, "import sys; print('out'); print('err', file=sys.stderr); print('end', end=''); sys.exit(7)"
    )
    process = await launch.start()
    assert await process.wait() == 7
    assert sorted(launch.lines) == ["end", "err", "out"]
    assert await process.wait() == 7
    await process.stop()


async def test_lines_are_bounded_whatever_is_printed(tmp_path: Path) -> None:
    code = "import sys; w = sys.stdout.buffer.write; w(b'x' * 100000 + b'\\n'); w(b'\\xff\\xfe\\r\\n'); w(b'a\\n\\nb')"
    launch = Launch(tmp_path, code)
    assert await (await launch.start()).wait() == 0
    long = [line for line in launch.lines if line.startswith("x")]
    assert "".join(long) == "x" * 100_000
    assert max(map(len, long)) <= MAX_LINE
    assert launch.lines[len(long) :] == ["\ufffd\ufffd", "a", "", "b"]


async def test_the_environment_is_what_a_worker_needs_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("TIDEMILL_WORKER_PATIENCE_SECONDS", "7")
    monkeypatch.setenv("TIDEMILL_WORKER_TOKEN", "of another")
    launch = Launch(tmp_path, "import os; [print(f'{k}={v}') for k, v in os.environ.items()]")
    await (await launch.start(TIDEMILL_WORKER_TOKEN="own")).wait()
    found = dict(line.split("=", 1) for line in launch.lines)
    assert "secret" not in found.values()
    assert found["TIDEMILL_WORKER_TOKEN"] == "own"
    assert found["TIDEMILL_WORKER_PATIENCE_SECONDS"] == "7"
    assert found["OMP_NUM_THREADS"] == found["TIDEMILL_WORKER_THREADS"] == "3"
    assert found["PATH"] == os.environ["PATH"]
    folder = Path(found["TIDEMILL_WORKER_DATA"])
    assert folder == tmp_path / "scratch" / "job"
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["job"]
    (tmp_path / "scratch" / "job" / "left").write_text("x")
    await launch.launcher.clean("job")
    assert not list((tmp_path / "scratch").iterdir())
    await launch.launcher.sweep(())
    await launch.launcher.clean("job")


async def test_it_is_asked_to_end_first_and_killed_then(tmp_path: Path) -> None:
    polite = await Launch(tmp_path / "polite", "import time; print('on', flush=True); time.sleep(600)").start()
    begun = time.monotonic()
    await polite.stop()
    assert await polite.wait() == -signal.SIGTERM
    assert time.monotonic() - begun < 4
    deaf_code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    launch = Launch(tmp_path / "deaf", deaf_code, grace=0.1)
    deaf = await launch.start()
    await until(lambda: launch.lines)
    await deaf.stop()
    assert await deaf.wait() == -signal.SIGKILL


async def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True)"
    )
    launch = Launch(tmp_path, code)
    process = await launch.start()
    assert await process.wait() == 0, "a grandchild that keeps the pipe open does not hold it up"
    await until(lambda: not lives(int(launch.lines[0])))


COUNTS = """
import pathlib, sys, time
for number in range(int(sys.argv[2])):
    print("line", number, flush=True)
    while number + 1 == int(sys.argv[3]) and not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.01)
sys.exit(5)
"""
"""Prints so many lines, and waits for a file before it goes on after some of them."""


def counts(tmp_path: Path, most: int = 6, pause: int = 3, **settings: Any) -> Launch:
    return Launch(
        tmp_path, command=(sys.executable, "-c", COUNTS, str(tmp_path / "gate"), str(most), str(pause)), **settings
    )


async def end(tmp_path: Path, launch: Launch, *, before: str = "", after: str = "", abandoned: float = 120.0) -> None:
    """Launch in a process of its own, which is killed: where `before` or `after` it says so, or when all is printed."""
    code = f"""
import asyncio, os, signal, subprocess
from pathlib import Path
from tidemill.training.launchers import local
from tidemill.training.launchers.base import Settings

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if {bool(before or after)}:
    real = {before or after or None}
    def dying(*arguments, **options):
        if {bool(after)}:
            real(*arguments, **options)
        die()
    {before or after or "unused"} = dying

async def main():
    command, template = {launch.launcher._settings.command!r}, {launch.launcher._settings.template!r}
    scratch = Path({str(tmp_path / "scratch")!r})
    launcher = local.Local(
        Settings(
            command=command, template=template, threads=1, grace=1, scratch=scratch, abandoned={abandoned}
        )
    )
    seen = asyncio.Event()
    await launcher.launch("job", "0.0", {{}}, lambda line, _: seen.set() if line == "line 2" else None)
    await seen.wait()
    die()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == -signal.SIGKILL


async def test_it_goes_on_when_who_has_launched_it_dies_and_is_found_again(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    await end(tmp_path, launch)
    process = await launch.adopt()
    assert process is not None
    assert lives(process.pid)
    await until(lambda: len(launch.lines) == 3)
    (tmp_path / "gate").touch()
    assert await process.wait() == 5
    assert launch.lines == [f"line {number}" for number in range(6)]
    for line, position in enumerate([0, *launch.positions]):
        again = counts(tmp_path)
        ended = await again.adopt(position)
        assert ended is not None, "how it has ended can be asked for until it is forgotten"
        assert await ended.wait() == 5
        assert again.lines == launch.lines[line:], "its output goes on behind any line"
    await process.forget()
    assert await launch.adopt() is None


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ("os.mkfifo", "", False),
        ("start", "", False),
        ("", "start", True),
        ("", "local.LocalProcess.started", True),
    ],
)
async def test_a_launch_that_is_broken_off_has_started_it_for_good_or_never_will(
    tmp_path: Path, way: str, before: str, after: str, runs: bool
) -> None:
    launch = counts(tmp_path)
    start = {"exec": "subprocess.Popen", "fork": "local.Nursery.fork"}[way]
    await end(
        tmp_path, launch, before=start if before == "start" else before, after=start if after == "start" else after
    )
    process = await launch.adopt()
    assert (process is not None) == runs
    if process is not None:
        (tmp_path / "gate").touch()
        assert await process.wait() == 5
    assert len(launch.lines) == (6 if runs else 0)


async def test_one_that_was_told_to_end_is_gone_and_none_of_its_lines_is_lost(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    process = await launch.start()
    await until(lambda: len(launch.lines) == 3)
    await process.stop()
    again = counts(tmp_path)
    assert await again.adopt(launch.positions[0]) is None
    assert again.lines == launch.lines[1:]


async def test_it_ends_when_nobody_comes_back(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    await end(tmp_path, launch, abandoned=0.3)
    pid, keeper = int((launch.folder / "keeper-0.0" / "pid").read_text().split()[0]), launch.keeper()
    await until(lambda: not lives(pid) and not lives(keeper))
    assert await launch.adopt() is None
    assert launch.lines == ["line 0", "line 1", "line 2", "the worker is ended: nobody looks after it any more"]


async def test_it_goes_on_when_somebody_comes_back_in_time(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    await end(tmp_path, launch, abandoned=1.0)
    process = await launch.adopt()
    assert process is not None
    await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=1.6)
    assert lives(process.pid), "it is not alone"
    (tmp_path / "gate").touch()
    assert await process.wait() == 5


async def test_it_ends_with_its_keeper(tmp_path: Path) -> None:
    launch = Launch(tmp_path, "import sys; print('on', flush=True); sys.stdin.read(); print('off', flush=True)")
    process = await launch.start()
    await until(lambda: launch.lines)
    os.kill(launch.keeper(), signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await until(lambda: not lives(process.pid))
    assert await launch.adopt() is None


async def test_a_keeper_that_does_not_obey_is_killed_with_its_worker(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    process = await launch.start()
    os.kill(launch.keeper(), signal.SIGSTOP)
    await process.stop(0)
    await until(lambda: not lives(process.pid))
    assert not lives(launch.keeper())


async def test_what_is_kept_of_its_output_is_bounded(tmp_path: Path) -> None:
    launch = Launch(tmp_path, "for n in range(40000): print('line', n)", output_bytes=50_000)
    assert await (await launch.start()).wait() == 0
    assert launch.lines[:2] == ["line 0", "line 1"]
    assert launch.lines[-1] == "line 39999", "the end says why"
    assert sum("bytes are left out here" in line for line in launch.lines) == 1
    assert (launch.folder / "keeper-0.0" / "output").stat().st_size < 60_000


async def test_a_handle_is_used_once(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    process = await launch.start()
    with pytest.raises(errors.AlreadyExists):
        await launch.start()
    await process.stop()
    with pytest.raises(errors.AlreadyExists):
        await launch.start()


async def test_cleaning_up_ends_what_still_runs(tmp_path: Path) -> None:
    launch = counts(tmp_path)
    await end(tmp_path, launch)
    keeper = launch.keeper()
    await launch.launcher.sweep({"job", "other"})
    assert lives(keeper)
    await launch.launcher.sweep({"other"})
    assert not lives(keeper)
    assert not list((tmp_path / "scratch").iterdir())


async def test_what_is_kept_of_a_paused_job_stays_until_it_is_over(tmp_path: Path) -> None:
    launch = counts(tmp_path, pause=0)
    await (await launch.start()).wait()
    (launch.folder / "kept-residual-0").touch()
    (launch.folder / "other").touch()
    (launch.folder / "rank0-x").mkdir()
    await launch.launcher.clean("job", paused=True)
    assert [path.name for path in launch.folder.iterdir()] == ["kept-residual-0"]
    await launch.launcher.sweep({"job"})
    assert launch.folder.exists()
    await launch.launcher.clean("job")
    assert not launch.folder.exists()


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_neither_keeper_nor_worker_has_what_is_not_its_own(tmp_path: Path) -> None:
    """The keeper holds nothing of the service open but what it was given, and the worker nothing of its keeper."""
    secret = tmp_path / "secret"
    secret.touch()
    with secret.open() as held:
        os.set_inheritable(held.fileno(), True)
        launch = counts(tmp_path)
        process = await launch.start(TIDEMILL_WORKER_TOKEN="hush")
        await until(lambda: launch.lines)
        for pid, most in ((process.pid, 3), (launch.keeper(), 16)):
            opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert str(secret) not in opened
            assert len(opened) <= most, opened
            assert b"hush" not in command_line(pid)
        await process.stop()


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition, match="No such file") as missing:
        await Launch(tmp_path / "1", command=("/no/such/program",)).start()
    assert missing.value.reason == "LAUNCH_FAILED"
    with pytest.raises(errors.FailedPrecondition, match="Permission denied"):
        await Launch(tmp_path / "2", command=(str(tmp_path),)).start()


def test_a_process_that_uses_grpc_can_launch(tmp_path: Path, way: str) -> None:
    """Starting processes beside busy gRPC servers and clients neither hangs nor disturbs them."""
    command = (sys.executable, "-c", "pass")
    code = f"""
import asyncio, sys
from pathlib import Path
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import grpc
from tidemill.training.launchers.base import Settings
from tidemill.training.launchers.local import Local

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{{port}}")
    check = health_pb2_grpc.HealthStub(channel).Check
    done = asyncio.Event()
    async def call():
        while not done.is_set():
            await check(health_pb2.HealthCheckRequest())
    calling = [asyncio.create_task(call()) for _ in range(4)]
    launcher = Local(
        Settings(
            command={command!r}, template={template_of(command, way)!r}, threads=1, grace=1,
            scratch=Path({str(tmp_path)!r}),
        )
    )
    for turn in range(10):
        processes = await asyncio.gather(*(launcher.launch("job", f"{{i}}.{{turn}}", {{}}, print) for i in range(2)))
        assert [await process.wait() for process in processes] == [0, 0]
    done.set()
    await asyncio.gather(*calling)
    await launcher.close()
    await channel.close()
    await server.stop(0)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
