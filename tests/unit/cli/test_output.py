"""Tables fit the terminal, JSON is JSON, and values read well."""

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tidemill.api.training.v1 import training_pb2 as training
from tidemill.cli import output

ROWS = [
    ("first", 1, "x" * 30, "2026-01-01 10:00"),
    ("second", 20, "short", "2026-01-02 10:00"),
]
COLUMNS = ["name", "count#", "text", "created"]


def table(capsys: pytest.CaptureFixture[str]) -> list[str]:
    output.print_table(COLUMNS, ROWS, fold=["text"])
    return [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]


def test_in_a_pipe_each_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(COLUMNS, [("a" * 500, 1, "b" * 500, "c"), *ROWS[1:]])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert out.splitlines()[1].split() == ["a" * 500, "1", "b" * 500, "c"]


def test_a_wide_terminal_shows_all(capsys: pytest.CaptureFixture[str], narrow: Callable[[int], None]) -> None:
    narrow(80)
    assert table(capsys) == [
        "name    count  text                            created",
        "first       1  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  2026-01-01 10:00",
        "second     20  short                           2026-01-02 10:00",
    ]


def test_a_narrower_one_folds(capsys: pytest.CaptureFixture[str], narrow: Callable[[int], None]) -> None:
    narrow(50)
    lines = table(capsys)
    assert lines[0].split() == ["name", "count", "text", "created"]
    assert "".join(line[15:].split()[0] for line in lines[1:3]) == "x" * 30
    assert max(map(len, lines)) <= 50


@pytest.mark.parametrize(("columns", "left"), [(40, 3), (20, 2), (10, 1), (3, 1)])
def test_a_very_narrow_one_leaves_columns_out(
    capsys: pytest.CaptureFixture[str], narrow: Callable[[int], None], columns: int, left: int
) -> None:
    narrow(columns)
    lines = table(capsys)
    assert len(lines[0].split()) == left
    assert max(map(len, lines)) <= columns


def test_markup_in_values_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name"], [("[bold]x[/bold] :smile:",)])
    output.print_fields([("name", "[red]y")])
    assert capsys.readouterr().out.splitlines() == ["name", "[bold]x[/bold] :smile:", "name  [red]y"]


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["a"], [], empty="no jobs")
    assert capsys.readouterr().out == "no jobs\n"


def test_empty_fields_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields([("a", 0), ("b", ""), ("c", None), ("long", "z" * 300)])
    assert capsys.readouterr().out.splitlines() == ["a     0", "long  " + "z" * 300]


def test_json_has_every_field_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    job = output.to_json(training.Job(name="jobs/ä", workers=[training.Worker(rank=0)]))
    assert job["workers"][0]["rank"] == 0
    assert job["state"] == "STATE_UNSPECIFIED"
    assert job["epochs"] == []
    output.print_json({"job": job, "scores": [float("nan"), float("inf"), -float("inf"), 0.5], "n": (1, 2)})
    text = capsys.readouterr().out
    assert "jobs/ä" in text
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found["scores"] == ["NaN", "Infinity", "-Infinity", 0.5]
    output.print_line({"a": [np.float64(0.5), float("nan")]})
    assert capsys.readouterr().out == '{"a": [0.5, "NaN"]}\n'


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_small_things(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.duration(0.04) == "0.0 ms"
    assert output.duration(999.96) == "1.00 s"
    assert output.counted(1, "worker") == "1 worker"
    assert output.counted(0, "worker") == "0 workers"
    assert output.pairs({"b": 1, "a": 0.123456789}) == "a=0.123457, b=1"
    assert output.short("models/digits/versions/1") == "digits/1"
    assert output.short("jobs/demo") == "jobs/demo"
    assert output.when(Timestamp()) == ""
    assert len(output.when(Timestamp(seconds=1_800_000_000))) == len("2027-01-15 08:00:00")
    assert len(output.minute(Timestamp(seconds=1_800_000_000))) == len("2027-01-15 08:00")
