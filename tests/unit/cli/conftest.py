"""What the tests of the command line share."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from tests.support.cli import storage
from tidemill.cli.__main__ import main
from tidemill.cli.stack import Stack

Ask: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A registry and an artifact service, as processes."""
    with storage(tmp_path_factory.mktemp("storage") / "data") as running:
        yield running


@pytest.fixture
def ask(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a command in this process; its exit status, output and errors."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this process believe that it writes to a terminal of so many columns."""

    def to(columns: int) -> None:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))

    return to
