"""Worker processes: their output, their environment, and their end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.training import lives
from tests.support.wait import until
from tidemill import errors
from tidemill.training.launchers.base import MAX_LINE, Process, Settings
from tidemill.training.launchers.local import Local


class Launch:
    """A program, and what it has printed."""

    def __init__(self, tmp_path: Path, code: str = "", command: tuple[str, ...] = (), grace: float = 5.0) -> None:
        self.lines: list[str] = []
        self.launcher = Local(
            Settings(
                command=command or (sys.executable, "-c", code), threads=3, grace=grace, scratch=tmp_path / "scratch"
            )
        )

    async def start(self, **environment: str) -> Process:
        return await self.launcher.launch("job", "0.0", environment, lambda line, _: self.lines.append(line))


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
    polite = await Launch(tmp_path, "import time; print('on', flush=True); time.sleep(600)").start()
    begun = time.monotonic()
    await polite.stop()
    assert await polite.wait() == -signal.SIGTERM
    assert time.monotonic() - begun < 4
    deaf_code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    launch = Launch(tmp_path, deaf_code, grace=0.1)
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


async def test_it_ends_when_the_launcher_dies(tmp_path: Path) -> None:
    """A process that launches a worker and is killed: the worker sees the end of its input."""
    worker = "import sys, pathlib, os; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); sys.stdin.read()"
    note = tmp_path / "pid"
    launcher = f"""
import asyncio
from pathlib import Path
from tidemill.training.launchers.base import Settings
from tidemill.training.launchers.local import Local

async def main():
    command = ({sys.executable!r}, "-c", {worker!r}, {str(note)!r})
    launcher = Local(Settings(command=command, threads=1, grace=1, scratch=Path({str(tmp_path)!r})))
    await (await launcher.launch("job", "0", {{}}, lambda line, _: print(line))).wait()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", launcher)
    try:
        await until(lambda: note.exists() and note.read_text())
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not lives(int(note.read_text())))


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.FailedPrecondition, match="No such file") as missing:
        await Launch(tmp_path, command=("/no/such/program",)).start()
    assert missing.value.reason == "LAUNCH_FAILED"
    with pytest.raises(errors.FailedPrecondition, match="Permission denied"):
        await Launch(tmp_path, command=(str(tmp_path),)).start()


def test_a_process_that_uses_grpc_can_launch(tmp_path: Path) -> None:
    """Starting processes beside busy gRPC servers and clients neither hangs nor disturbs them."""
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
    launcher = Local(Settings(command=("/bin/true",), threads=1, grace=1, scratch=Path({str(tmp_path)!r})))
    for _ in range(50):
        processes = await asyncio.gather(*(launcher.launch("job", str(i), {{}}, print) for i in range(2)))
        assert [await process.wait() for process in processes] == [0, 0]
    done.set()
    await asyncio.gather(*calling)
    await channel.close()
    await server.stop(0)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
