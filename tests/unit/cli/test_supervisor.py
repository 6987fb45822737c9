"""Programs are started, watched, started again and stopped, with real processes."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.training import lives
from tests.support.wait import until
from tidemill.cli.logfile import LogFile
from tidemill.cli.supervisor import Pace, Program, Supervisor, console
from tidemill.errors import Unavailable

FAST = Pace(first_pause=0.1, longest_pause=0.2, tier=5.0, grace=10.0, drain=0.2)
SERVE = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("pid", os.getpid(), flush=True)
"""
FOREVER = f"{SERVE}\nserver.serve_forever()\n"


class Stage:
    """Tiny programs, and what they have said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[tuple[str, str]] = []
        self._ports = iter(free_ports(4))

    def program(self, name: str, code: str, tier: int = 0) -> Program:
        """A program with this source text."""
        (self.folder / f"fake_{name}.py").write_text(code)
        port = next(self._ports)
        environment = {"PYTHONPATH": str(self.folder), "NAME": name, "PORT": str(port), "FOLDER": str(self.folder)}
        url = f"http://127.0.0.1:{port}/readyz"
        return Program(name=name, module=f"fake_{name}", environment=environment, ready_url=url, tier=tier)

    def said(self, pattern: str, name: str = "") -> list[str]:
        """Lines that match, without or of one program."""
        return [line for who, line in self.lines if re.search(pattern, line) and name in ("", who)]

    def pid(self, name: str) -> int:
        """The process of a program that says so."""
        return int(self.said("^pid ", name)[-1].split()[1])

    @asynccontextmanager
    async def supervised(self, *programs: Program, pace: Pace = FAST) -> AsyncIterator[Supervisor]:
        """A supervisor of these programs, which are stopped at the end."""
        supervisor = Supervisor(
            programs, self.folder / "logs", lambda name, line: self.lines.append((name, line)), pace
        )
        try:
            yield supervisor
        finally:
            await supervisor.stop()

    @asynccontextmanager
    async def kept(self, program: Program, pace: Pace = FAST) -> AsyncIterator[None]:
        """A program that never becomes ready, kept running all the same."""
        async with self.supervised(program, pace=pace) as supervisor:
            starting = asyncio.create_task(supervisor.start(30))
            try:
                yield
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_start_returns_when_all_are_ready_and_stop_leaves_nothing(stage: Stage) -> None:
    async with stage.supervised(stage.program("one", FOREVER), stage.program("two", FOREVER)) as supervisor:
        await supervisor.start(30)
        pids = [stage.pid("one"), stage.pid("two")]
        assert all(map(lives, pids))
    assert not any(map(lives, pids))


async def test_what_ends_is_started_again_after_pauses_that_grow_to_a_limit(stage: Stage) -> None:
    async with stage.kept(stage.program("short", "import sys; sys.exit(3)")):
        await until(lambda: len(stage.said("started again")) >= 4)
    assert stage.said("started again")[:4] == [
        f"ended with status 3; it is started again in {pause} s" for pause in (0.1, 0.2, 0.2, 0.2)
    ]


async def test_what_ran_long_enough_begins_with_the_first_pause(stage: Stage) -> None:
    healthy = Pace(first_pause=0.1, longest_pause=9.0, healthy=0.0)
    async with stage.kept(stage.program("short", "import sys; sys.exit(1)"), healthy):
        await until(lambda: len(stage.said("started again")) >= 3)
    assert {line.split()[-2] for line in stage.said("started again")} == {"0.1"}


async def test_a_killed_program_comes_back(stage: Stage) -> None:
    async with stage.supervised(stage.program("one", FOREVER)) as supervisor:
        await supervisor.start(30)
        first = stage.pid("one")
        os.kill(first, signal.SIGKILL)
        await until(lambda: stage.pid("one") != first)
    assert stage.said("was killed by SIGKILL")


async def test_status_2_while_starting_is_fatal_and_names_the_log(stage: Stage) -> None:
    bad = stage.program("bad", "import sys; print('port taken'); sys.exit(2)")
    async with stage.supervised(bad, stage.program("good", FOREVER)) as supervisor:
        with pytest.raises(Unavailable, match=r"bad could not start; see .*/logs/bad\.log"):
            await supervisor.start(30)
    assert (stage.folder / "logs" / "bad.log").read_text() == "port taken\n"


async def test_status_2_later_ends_run(stage: Stage) -> None:
    once = f"{SERVE}\nserver.handle_request()\nraise SystemExit(2)\n"
    async with stage.supervised(stage.program("once", once)) as supervisor:
        await supervisor.start(30)
        with pytest.raises(Unavailable, match="once could not start"):
            await asyncio.wait_for(supervisor.run(), 20)


async def test_who_is_not_ready_in_time_is_named(stage: Stage) -> None:
    idle = stage.program("idle", "import signal; signal.pause()")
    async with stage.supervised(idle) as supervisor:
        with pytest.raises(Unavailable, match="not ready within 0 s: idle"):
            await supervisor.start(0.2)


async def test_a_port_of_somebody_else_is_not_taken_for_ready(stage: Stage) -> None:
    program = stage.program("one", FOREVER)
    port = int(program.environment["PORT"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        async with stage.supervised(program) as supervisor:
            with pytest.raises(Unavailable, match=f"one could not start: cannot listen on 127.0.0.1:{port}") as error:
                await supervisor.start(30)
    assert error.value.reason == "PORT_IN_USE"
    assert stage.lines == []


async def test_higher_tiers_have_ended_before_lower_ones_are_told(stage: Stage) -> None:
    code = f"""{SERVE}
import atexit, signal, sys
diary = open(os.environ["FOLDER"] + "/diary", "a", buffering=1)

def told(*arguments):
    print("told", os.environ["NAME"], file=diary)
    sys.exit(0)

signal.signal(signal.SIGTERM, told)
atexit.register(lambda: print("ended", os.environ["NAME"], file=diary))
server.serve_forever()
"""
    programs = [stage.program(name, code, tier) for name, tier in (("base", 0), ("top", 2), ("middle", 1))]
    async with stage.supervised(*programs) as supervisor:
        await supervisor.start(30)
    assert (stage.folder / "diary").read_text().split("\n")[:-1] == [
        f"{what} {name}" for name in ("top", "middle", "base") for what in ("told", "ended")
    ]


async def test_what_ignores_sigterm_is_killed_and_holds_up_no_other(stage: Stage) -> None:
    deaf = stage.program(
        "deaf", f"{SERVE}\nimport signal\nsignal.signal(15, signal.SIG_IGN)\nserver.serve_forever()", 1
    )
    pace = Pace(tier=0.1, grace=0.3, drain=0.2)
    async with stage.supervised(deaf, stage.program("polite", FOREVER), pace=pace) as supervisor:
        await supervisor.start(30)
        pids = [stage.pid("deaf"), stage.pid("polite")]
    assert not any(map(lives, pids))


async def test_a_stop_in_the_middle_of_the_start_leaves_nothing(stage: Stage) -> None:
    program = stage.program("one", FOREVER)
    async with stage.supervised(program) as supervisor:
        starting = asyncio.create_task(supervisor.start(30))
        await asyncio.sleep(0)  # the process is being made now
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    with socket.socket() as again:
        again.bind(("127.0.0.1", int(program.environment["PORT"])))


async def test_a_stop_ends_the_pause_before_a_restart(stage: Stage) -> None:
    patient = Pace(first_pause=1000.0, longest_pause=1000.0)
    async with stage.kept(stage.program("short", "import sys; sys.exit(1)"), patient):
        await until(lambda: stage.said("started again"))


async def test_what_a_program_has_started_does_not_outlive_it(stage: Stage) -> None:
    code = "import subprocess; print('pid', subprocess.Popen(['sleep', '1000']).pid, flush=True); raise SystemExit(1)"
    async with stage.kept(stage.program("parent", code)):
        await until(lambda: stage.said("^pid"))
        child = stage.pid("parent")
        await until(lambda: not lives(child))


async def test_a_grandchild_that_keeps_the_output_open_holds_up_no_restart(stage: Stage) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('pid', child.pid, flush=True); sys.exit(1)"
    )
    async with stage.kept(stage.program("parent", code)):
        await until(lambda: stage.said("started again"))
    for line in stage.said("^pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[1]), signal.SIGKILL)


async def test_output_of_any_shape_arrives_in_lines(stage: Stage) -> None:
    code = (
        "import sys\n"
        "print('100 % of ä'); print(); sys.stdout.flush()\n"
        "sys.stdout.buffer.write(b'\\xff wrong\\r\\n'); sys.stdout.buffer.flush()\n"
        "print('x' * 200_000, file=sys.stderr, flush=True)\n"
        "sys.stdout.write('no newline'); sys.stdout.flush(); sys.exit(1)"
    )
    async with stage.kept(stage.program("loud", code)):
        await until(lambda: stage.said("started again"))
    lines = [line for _, line in stage.lines]
    first = lines[: lines.index("ended with status 1; it is started again in 0.1 s")]
    assert first[:3] == ["100 % of ä", "", "\N{REPLACEMENT CHARACTER} wrong"]
    assert first[-1] == "no newline"
    assert "".join(first[3:-1]) == "x" * 200_000
    assert max(map(len, first)) < 200_000
    log = (stage.folder / "logs" / "loud.log").read_text().splitlines()
    assert log[: len(first)] == first


def test_a_log_file_keeps_within_its_limit(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log", 100)
    for number in range(1000):
        log.write(f"line {number}")
    log.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 100
    kept = (tmp_path / "one.log.1").read_text() + (tmp_path / "one.log").read_text()
    assert kept.splitlines() == [f"line {number}" for number in range(1000)][-len(kept.splitlines()) :]


def test_a_log_file_is_continued_and_long_lines_are_cut(tmp_path: Path) -> None:
    for text in ("first", "x" * 500):
        log = LogFile(tmp_path / "one.log", 100)
        log.write(text)
        log.close()
    assert (tmp_path / "one.log.1").read_text() == "first\n"
    assert (tmp_path / "one.log").read_text() == "x" * 99 + "\n"


async def test_a_log_that_cannot_be_written_does_not_stop_a_program(stage: Stage) -> None:
    (stage.folder / "logs").mkdir()
    (stage.folder / "logs" / "one.log").symlink_to("/dev/full")
    async with stage.supervised(stage.program("one", f"print('a')\n{FOREVER}")) as supervisor:
        await supervisor.start(30)
        assert len(stage.said("its log file cannot be written: No space left on device")) == 1
        assert lives(stage.pid("one"))


def test_lines_carry_the_name_of_their_program() -> None:
    stream = io.StringIO()
    show = console(9, stream)
    show("registry", "ready")
    show("artifacts", "ready too")
    assert stream.getvalue() == "registry  | ready\nartifacts | ready too\n"


def test_lines_that_nobody_reads_any_more_are_dropped() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    show = console(4, stream)
    show("one", "first")
    show("one", "second")
    with pytest.raises(BrokenPipeError):
        stream.close()
