"""A data directory has one owner, and a version that newer code may have counted up."""

from pathlib import Path

import pytest

from tests.support.artifacts import config, service_process
from tidemill import errors
from tidemill.artifacts.app import build
from tidemill.datadir import DataDirectory


def test_a_new_directory_is_private_and_gets_its_version(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "new" / "data", 1)
    directory.open()
    assert (directory.path / "FORMAT").read_text() == "1\n"
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.close()
    directory.open()
    directory.close()


@pytest.mark.parametrize(
    ("text", "reason"), [("2\n", "DATA_VERSION_NEWER"), ("", "DATA_VERSION_UNKNOWN"), ("one", "DATA_VERSION_UNKNOWN")]
)
async def test_another_version_is_refused_and_left_alone(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "FORMAT").write_text(text)
    with pytest.raises(errors.FailedPrecondition) as refused:
        await build(config(tmp_path)).start()
    assert refused.value.reason == reason
    assert (tmp_path / "FORMAT").read_text() == text
    assert not (tmp_path / "objects").exists()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path, 1), DataDirectory(tmp_path, 1)
    first.open()
    with pytest.raises(errors.FailedPrecondition) as refused:
        second.open()
    assert refused.value.reason == "DATA_IN_USE"
    first.close()
    second.open()
    second.close()


def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.Unavailable):
        DataDirectory(tmp_path / "file" / "data", 1).open()


def test_a_process_says_in_one_line_why_it_does_not_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "FORMAT").write_text("7\n")
    with pytest.raises(RuntimeError, match="data version 7"), service_process(data, tmp_path):
        pass
    assert len((tmp_path / "service.log").read_text().splitlines()) == 1
