"""What is written on the command line becomes values."""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from tidemill.cli import files, values
from tidemill.errors import Invalid


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("rate=0.1", ("rate", 0.1)),
        ("hidden=[64, 32]", ("hidden", [64, 32])),
        ("fused=true", ("fused", True)),
        ("kind=relu", ("kind", "relu")),
        ('kind="7"', ("kind", "7")),
        ("a=b=c", ("a", "b=c")),
        ("empty=", ("empty", "")),
        ("rate=NaN", ("rate", "NaN")),
        ("rate=-Infinity", ("rate", "-Infinity")),
    ],
)
def test_assignments(text: str, pair: tuple[str, Any]) -> None:
    assert values.assignment(text) == pair


def test_labels_stay_text() -> None:
    assert values.label("n=1") == ("n", "1")


@pytest.mark.parametrize("text", ["", "x", "=1"])
def test_what_is_no_assignment(text: str) -> None:
    for convert in (values.assignment, values.label):
        with pytest.raises(ArgumentTypeError, match="is not NAME=VALUE"):
            convert(text)


def test_whole_numbers() -> None:
    assert values.whole(0)("12") == 12
    assert values.whole(1, 16)("16") == 16
    for text, said in (("17", r"in \[1, 16\], not 17"), ("0", "not 0"), ("1.5", "not a whole"), ("", "not a whole")):
        with pytest.raises(ArgumentTypeError, match=said):
            values.whole(1, 16)(text)


def test_pictures(tmp_path: Path) -> None:
    for suffix in (".png", ".SVG", ".pdf"):
        assert values.picture(str(tmp_path / f"x{suffix}")) == tmp_path / f"x{suffix}"
    assert values.picture("curve.png") == Path("curve.png")
    for path in (tmp_path / "x.gif", tmp_path / "x", tmp_path / "no" / "x.png"):
        with pytest.raises(ArgumentTypeError):
            values.picture(str(path))


def test_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").touch()
    given = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert files.by_name(given) == {"a.csv": tmp_path / "a.csv", "b.csv": tmp_path / "b.csv"}
    for wrong, said in (
        (str(tmp_path / "sub" / "a.csv"), "have the same name"),
        (str(tmp_path / "sub"), "is a directory"),
        (str(tmp_path / "c.csv"), "no such file"),
    ):
        with pytest.raises(Invalid, match=said):
            files.by_name([*given, wrong])
