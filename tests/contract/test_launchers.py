"""What every launcher promises: one suite over all of them, on a real cluster where it takes one."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.raycluster import Cluster, ray_cluster
from tests.support.training import lives
from tests.support.wait import until
from tidemill import errors, plugins
from tidemill.training import launchers
from tidemill.training.launchers.base import MAX_LINE, Launcher, Process, Settings

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("ray")]
JOB = "0123abcd"
WAITS = "import sys; print('on', flush=True); sys.stdin.read()"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), nodes=1, cpus=8) as running:
        yield running


Make = Callable[..., Launcher]


@pytest.fixture(params=plugins.names(launchers))
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes launchers of one kind that know of each other's workers."""
    options = request.getfixturevalue("cluster").options() if request.param == "ray" else ()
    made: list[Launcher] = []

    def launcher(code: str = "", *, command: tuple[str, ...] = (), **settings: Any) -> Launcher:
        known = {"threads": 3, "grace": 5.0, "scratch": tmp_path / "scratch", "options": options}
        kind = plugins.load(launchers, request.param, Launcher)
        made.append(kind(Settings(command=command or (sys.executable, "-c", code), **{**known, **settings})))
        return made[-1]

    yield launcher
    if made:
        await made[-1].clean(JOB)
    for each in made:
        await each.close()


class Lines(list[str]):
    """What a worker has printed, with positions."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def __call__(self, line: str, position: int) -> None:
        self.append(line)
        self.positions.append(position)


async def test_output_status_and_environment(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("TIDEMILL_WORKER_PATIENCE_SECONDS", "7")
    monkeypatch.setenv("TIDEMILL_WORKER_TOKEN", "of another")
    code = (
        "import os, pathlib, sys; sys.stdout.buffer.write(b'x' * 100000 + b'\\n\\xff\\xfe\\r\\na\\n\\n'); "
        "pathlib.Path(os.environ['TIDEMILL_WORKER_DATA'], 'left').touch(); "
        "[print(f'{k}={v}', flush=True) for k, v in os.environ.items()]; "
        "print('err', file=sys.stderr, flush=True); print('end', end=''); sys.exit(7)"
    )
    launcher, lines = make(code), Lines()
    process = await launcher.launch(JOB, "0.0", {"TIDEMILL_WORKER_TOKEN": "own"}, lines)
    assert await process.wait() == 7
    await process.stop()
    long = [line for line in lines if line.startswith("x")]
    assert "".join(long) == "x" * 100_000
    assert max(map(len, long)) <= MAX_LINE
    assert lines[len(long) :][:3] == ["\ufffd\ufffd", "a", ""]
    assert lines[-2:] == ["err", "end"]
    assert lines.positions == sorted(set(lines.positions))
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert "secret" not in found.values()
    assert found["TIDEMILL_WORKER_TOKEN"] == "own"
    assert found["TIDEMILL_WORKER_PATIENCE_SECONDS"] == "7"
    assert found["OMP_NUM_THREADS"] == found["TIDEMILL_WORKER_THREADS"] == "3"
    for start in (0, len(lines) // 2, len(lines) - 1):
        again = Lines()
        adopted = await launcher.adopt(JOB, "0.0", again, lines.positions[start])
        assert adopted is not None, "how it has ended can be asked for until it is forgotten"
        assert await adopted.wait() == 7
        assert again == lines[start + 1 :], "its output goes on behind any line"
    with pytest.raises(errors.AlreadyExists):
        await launcher.launch(JOB, "0.0", {}, lines)
    await process.forget()
    await launcher.clean(JOB)
    assert await launcher.adopt(JOB, "0.0", lines, 0) is None
    left = Path(found["TIDEMILL_WORKER_DATA"], "left")
    assert not await asyncio.to_thread(left.exists)


async def test_it_is_asked_to_end_first_and_killed_then_with_all_it_has_started(make: Make) -> None:
    child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True); "
    polite, deaf = Lines(), Lines()
    parent = make(command=(sys.executable, "-c", child + WAITS, DEAF))
    first, second = await asyncio.gather(
        parent.launch(JOB, "0.0", {}, polite), make(DEAF, grace=0.1).launch(JOB, "1.0", {}, deaf)
    )
    assert lives(first.pid)
    await until(lambda: len(polite) >= 3 and deaf)
    await asyncio.gather(first.stop(), second.stop())
    assert await first.wait() == -signal.SIGTERM
    assert await second.wait() == -signal.SIGKILL
    await until(lambda: not lives(first.pid) and not lives(second.pid) and not lives(int(polite[0])))
    again = Lines()
    assert await parent.adopt(JOB, "0.0", again, polite.positions[0]) is None, "it was ended on our behalf"
    assert sorted(again) == ["on", "on"], "none of its lines is lost"


async def test_it_is_found_again_and_ends_when_its_job_is_over(make: Make) -> None:
    before, lines = make(WAITS), Lines()
    kept, other = await asyncio.gather(*(before.launch(JOB, f"{rank}.0", {}, lines) for rank in range(2)))
    await until(lambda: len(lines) == 2)
    await before.close()
    after, again = make(WAITS), Lines()
    found = await after.adopt(JOB, "0.0", again, 0)
    assert found is not None
    assert found.pid == kept.pid
    await until(lambda: again == ["on"])
    assert await after.adopt(JOB, "2.0", again, 0) is None, "it was never launched"
    await after.sweep({JOB, "other"})
    assert lives(kept.pid)
    await after.sweep({"other"})
    await until(lambda: not lives(kept.pid) and not lives(other.pid))
    assert await after.adopt(JOB, "0.0", again, 0) is None


async def test_a_launch_that_is_broken_off_or_fails_leaves_nothing(make: Make) -> None:
    launcher, lines = make(WAITS), Lines()
    launch = asyncio.ensure_future(launcher.launch(JOB, "0.0", {}, lines))
    missing = make(command=("/no/such/program",))
    with pytest.raises(errors.FailedPrecondition, match="No such file") as refused:
        await missing.launch(JOB, "1.0", {}, lines)
    assert refused.value.reason == "LAUNCH_FAILED"
    launch.cancel()
    outcome: Process | BaseException = (await asyncio.gather(launch, return_exceptions=True))[0]
    if isinstance(outcome, Process):
        await outcome.stop()

    async def gone(handle: str) -> bool:
        return await launcher.adopt(JOB, handle, lines, 0) is None

    # On another machine it ends a moment after it is told to.
    for handle in ("0.0", "1.0"):
        await until(lambda handle=handle: gone(handle), what=f"nothing is left of {handle}")  # type: ignore[misc]
