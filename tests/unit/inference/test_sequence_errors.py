"""Requests that a model of sequences refuses, and what they are told."""

from typing import Any

import numpy as np
import pytest

from tests.support.sequences import ID, Recorder, running
from tidemill.errors import Exhausted, Invalid
from tidemill.inference.configuration import Control, ControlKind, SequenceBatching
from tidemill.inference.scheduling import sequence_table
from tidemill.tensors.dtypes import DataType

DIRECT = SequenceBatching(idle=10)


def corrid(datatype: DataType) -> SequenceBatching:
    control = Control(name="CORRID", kind=ControlKind.CORRID, datatype=datatype)
    return SequenceBatching(idle=10, controls=(control,))


@pytest.mark.parametrize("correlation", [0, ""])
def test_correlation_id_is_required(correlation: int | str) -> None:
    with running(Recorder(), DIRECT) as m:
        with pytest.raises(Invalid) as refused:
            m.ask(correlation, flags="s")
        assert m.statistics.snapshot().fail.count == 1
    assert refused.value.message == (
        "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
    )


@pytest.mark.parametrize("correlation", [5, "five", 2**64 - 1])
def test_start_is_required(correlation: int | str) -> None:
    recorder = Recorder()
    with running(recorder, DIRECT) as m:
        for flags in ("", "e"):
            with pytest.raises(Invalid) as refused:
                m.ask(correlation, flags=flags)
            assert refused.value.message == (
                f"inference request for sequence {correlation} to model 'm' must specify the START flag on the first "
                "request of the sequence"
            )
        assert m.ask(correlation, 1, "se") == 10
        with pytest.raises(Invalid, match="must specify the START flag"):
            m.ask(correlation)
    assert recorder.xs == [[[1]]]


def test_nothing_but_a_start_follows_an_end_that_has_not_run_yet() -> None:
    recorder = Recorder()
    with running(recorder, DIRECT) as m:
        recorder.free.clear()
        ended = m.send(1, 1, "se")
        with pytest.raises(Invalid, match="must specify the START flag"):
            m.ask(1, 2)
        again = m.send(1, 3, "s")
        recorder.free.set()
        assert (ended.value("y"), again.value("y")) == (10, 30)


def test_text_and_number_are_different_ids() -> None:
    with running(Recorder(), DIRECT) as m:
        m.ask("5", flags="s")
        with pytest.raises(Invalid, match="must specify the START flag"):
            m.ask(5)


@pytest.mark.parametrize(
    ("datatype", "correlation", "problem"),
    [
        (DataType.UINT64, "five", "has a string correlation ID, but the model's CORRID control is of type UINT64"),
        (DataType.BYTES, 5, "has an integer correlation ID, but the model's CORRID control takes strings"),
        (DataType.INT32, 2**31, "has a correlation ID too large for its CORRID control, INT32"),
        (DataType.INT64, 2**63, "has a correlation ID too large for its CORRID control, INT64"),
        (DataType.UINT64, 2**64, "must specify a correlation ID from 1 to 18446744073709551615"),
        (DataType.UINT64, -1, "must specify a correlation ID from 1 to 18446744073709551615"),
        (DataType.BYTES, "ä" * 65, "has a correlation ID of 130 bytes; it may have 128"),
    ],
)
def test_ids_that_the_model_cannot_be_told(datatype: DataType, correlation: int | str, problem: str) -> None:
    with running(Recorder(), corrid(datatype)) as m, pytest.raises(Invalid) as refused:
        m.ask(correlation, flags="s")
    assert refused.value.message == f"inference request to model 'm' {problem}"


@pytest.mark.parametrize(
    ("datatype", "correlation"),
    [(DataType.UINT64, 2**64 - 1), (DataType.INT32, 2**31 - 1), (DataType.BYTES, "ä" * 64)],
)
def test_the_largest_ids(datatype: DataType, correlation: int | str) -> None:
    recorder = Recorder()
    with running(recorder, corrid(datatype)) as m:
        m.ask(correlation, flags="s")
    (given,) = recorder.runs
    assert given["CORRID"] == [[correlation.encode() if isinstance(correlation, str) else correlation]]


def test_one_row_at_a_time() -> None:
    with running(Recorder(), SequenceBatching(idle=10, controls=(ID,))) as m, pytest.raises(Invalid) as refused:
        m.ask(1, flags="s", rows=2, inputs={"x": np.zeros((2, 1), np.int32)})
    assert refused.value.message == (
        "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
    )


@pytest.mark.parametrize(
    ("bound", "sent"),
    [
        ("QUEUE", [(1, "s"), (1, ""), (1, "")]),
        ("WAITING", [(1, "s"), (2, "s"), (3, "s")]),
        ("BACKLOG", [(1, "s"), (2, "s"), (3, "s"), (4, "s"), (5, "s"), (6, "s")]),
    ],
)
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, sent: list[Any]) -> None:
    monkeypatch.setattr(sequence_table, bound, 2)
    recorder = Recorder()
    with running(recorder, DIRECT) as m:
        recorder.free.clear()
        if bound != "BACKLOG":
            m.send(1, 1, "s")
            assert recorder.begun.acquire(timeout=20)
        last = [m.send(number, 1, flags) for number, flags in sent]
        over = m.send(*((1, 1) if bound == "QUEUE" else (9, 1, "s")))
        replies = [*last, over]
        refused = [reply.last for reply in replies if reply.done.is_set()]
        assert refused
        for error in refused:
            assert isinstance(error, Exhausted)
            assert (error.message, error.reason) == ("Exceeds maximum queue size", "QUEUE_FULL")
            assert error.retry_after
