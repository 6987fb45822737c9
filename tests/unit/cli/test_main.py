"""What every command has in common: help, usage errors, exit statuses, pipes and Ctrl-C."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import COMMAND, environment
from tests.support.up import free_offset
from tests.unit.cli.conftest import Ask
from tidemill import plugins
from tidemill.cli import commands
from tidemill.cli.commands.base import Command
from tidemill.cli.stack import OPS

NAMES = plugins.names(commands)
ACTIONS = {
    "jobs": ["list", "show", "cancel", "delete", "plot"],
    "models": ["list", "versions", "show", "alias", "unalias", "tag", "delete"],
    "artifacts": ["list", "show", "upload", "download", "delete"],
}


def one_line(text: str) -> str:
    """The only line of `text`."""
    (line,) = text.splitlines()
    return line


def test_help_lists_every_command(ask: Ask) -> None:
    status, out, err = ask("--help")
    assert (status, err) == (0, "")
    for name in NAMES:
        assert f"\n  {name}  " in out
    assert all(len(line) < 80 for line in out.splitlines())


def test_without_a_command_the_help_is_an_error(ask: Ask) -> None:
    status, out, err = ask()
    assert (status, out) == (2, "")
    assert "commands:" in err


def test_version(ask: Ask) -> None:
    status, out, _ = ask("--version")
    assert status == 0
    assert out.startswith("tidemill ")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples(ask: Ask, name: str) -> None:
    status, out, err = ask(name, "--help")
    assert (status, err) == (0, "")
    command = plugins.load(commands, name, Command)
    assert command.help[1:] in " ".join(out.split())
    assert command.examples
    for example in command.examples:
        assert f"  {example}" in out
    assert all(len(line) < 80 for line in out.splitlines())


@pytest.mark.parametrize(("command", "action"), [(c, a) for c, actions in ACTIONS.items() for a in actions])
def test_every_action_has_help_and_the_common_flags(ask: Ask, command: str, action: str) -> None:
    status, out, _ = ask(command, action, "--help")
    assert status == 0
    for flag in ("--data", "--port-offset", "--json"):
        assert flag in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["jobs", "bogus"], "invalid choice: 'bogus'"),
        (["jobs", "list", "extra"], "tidemill jobs list: unrecognized arguments: extra"),
        (["jobs", "show"], "JOB"),
        (["jobs", "plot", "x", "--output", "x.gif"], ".png, .svg, .pdf"),
        (["jobs", "plot", "x", "--output", "/no/such/place/x.png"], "/no/such/place"),
        (["jobs", "--port-offset", "50001"], "[0, 50000]"),
        (["jobs", "--jso"], "--jso"),
        (["models", "alias", "digits"], "VERSION"),
        (["models", "alias", "digits", "champion"], "'champion' is not a whole number"),
        (["models", "tag", "digits"], "--tag or --remove is required"),
        (["models", "tag", "digits", "--tag", "x"], "'x' is not NAME=VALUE"),
        (["artifacts", "upload"], "FILE"),
        (["logs", "x", "--from-line", "-1"], "0 or more"),
        (["train", "mlp"], "DATASET"),
        (["train", "mlp", "digits", "--epochs", "0"], "1 or more, not 0"),
        (["train", "mlp", "digits", "--epochs", "many"], "'many' is not a whole number"),
        (["train", "mlp", "digits", "-p", "hidden"], "'hidden' is not NAME=VALUE"),
        (["train", "mlp", "digits", "--plot", "curve"], ".png"),
        (["up", "--shards", "17"], "[1, 16]"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(ask: Ask, arguments: list[str], said: str) -> None:
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert said in one_line(err)
    assert one_line(err).endswith("--help`")


def test_a_service_that_is_not_there_is_one_line_and_status_1(ask: Ask, tmp_path: Path) -> None:
    for arguments, service in (
        (["jobs"], "training"),
        (["logs", "x", "--follow"], "training"),
        (["trace", "x"], "training"),
        (["catalogue"], "training"),
        (["models"], "registry"),
        (["artifacts"], "artifacts"),
        (["train", "mlp", "iris"], "training"),
    ):
        status, out, err = ask(*arguments, "--data", str(tmp_path), "--port-offset", "41")
        assert (status, out) == (1, "")
        assert f"tidemill: the {service} service at 127.0.0.1:" in one_line(err)
        assert "does not answer" in err


def test_files_that_are_not_there_are_one_line_and_status_1(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.csv").touch()
    (tmp_path / "x.csv").touch()
    twice = [str(tmp_path / "x.csv"), str(tmp_path / "a" / "x.csv")]
    for arguments, said in (
        (["train", "mlp", "nothing.csv"], "nothing.csv: no such file"),
        (["train", "mlp", str(tmp_path)], "is a directory"),
        (["train", "mlp", *twice], "have the same name"),
        (["artifacts", "upload", "nothing"], "nothing: no such file"),
        (["predict", "digits", "nothing.npy"], "nothing.npy: No such file"),
        (["up", "--data", str(tmp_path / "x.csv")], "x.csv"),
        (["up", "--data", "/dev/null/x"], "Not a directory"),
    ):
        status, out, err = ask(*arguments)
        assert (status, out) == (1, "")
        assert said in one_line(err)


def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "status", "--json", "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 141


async def test_ctrl_c_is_status_130_without_a_word(tmp_path: Path) -> None:
    fifo = tmp_path / "input.json"
    os.mkfifo(fifo)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "predict", "digits", str(fifo), stderr=asyncio.subprocess.PIPE, env=environment()
    )
    try:
        with await asyncio.to_thread(fifo.open, "w"):  # the command has begun to read
            process.send_signal(signal.SIGINT)
            _, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:  # a failure here is no other test's
            process.kill()
            await process.communicate()
    assert (process.returncode, err) == (130, b"")


def test_up_is_free_of_grpc() -> None:
    code = "import sys; from tidemill.cli.__main__ import main\ntry: main(['up', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'google', 'numpy', 'rich')])"
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_up_on_ports_of_another_platform_starts_nothing(ask: Ask, tmp_path: Path) -> None:
    offset = free_offset()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", OPS["registry"] + offset))
        taken.listen()
        status, out, err = ask("up", "--data", str(tmp_path / "data"), "--port-offset", str(offset))
    assert (status, out) == (1, "")
    assert one_line(err).startswith("tidemill: registry could not start: cannot listen on 127.0.0.1:")
    assert "--port-offset N moves all ports" in err
    assert (tmp_path / "data" / "up.json").read_text() == ""


def test_up_on_data_of_another_platform_starts_nothing(ask: Ask, tmp_path: Path) -> None:
    note = tmp_path / "up.json"
    note.write_text("{}")
    with note.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, out, err = ask("up", "--data", str(tmp_path))
    assert (status, out, err) == (1, "", f"tidemill: another `tidemill up` runs on {tmp_path}\n")
    assert note.read_text() == "{}"
