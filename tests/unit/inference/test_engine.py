"""Running calls on a version."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.inference.fakes import EchoRuntime, assembler, loaded, version
from tidemill.errors import DeadlineExceeded, Exhausted, Internal, Invalid
from tidemill.inference.assembly import Assembler
from tidemill.inference.calls import Array, Call
from tidemill.inference.engine import Engine
from tidemill.telemetry.setup import Telemetry, setup

X = {"x": np.ones(4, np.float32)}


class Broken(EchoRuntime):
    """Fails with what the test has put there."""

    problem: Exception = Internal("failed", reason="EXECUTION_FAILED")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        raise self.problem from ZeroDivisionError("/src/secret.cc: divided")


@pytest.fixture
def telemetry() -> Telemetry:
    return setup("test")


@pytest.fixture
def by(telemetry: Telemetry) -> Assembler:
    return assembler(telemetry)


@pytest.fixture
def engine(telemetry: Telemetry) -> Engine:
    return Engine(telemetry.tracer, largest_answer=64)


def call(inputs: Mapping[str, Array] = X, **more: Any) -> Call:
    return Call(inputs=inputs, outputs=["y"], **more)


def count(telemetry: Telemetry, outcome: str) -> float | None:
    labels = {"model": "m", "version": "1", "outcome": outcome}
    return telemetry.registry.get_sample_value("tidemill_inferences_total", labels)


def test_runs_and_counts(engine: Engine, by: Assembler, telemetry: Telemetry) -> None:
    answer = engine.infer(loaded(version(1), by=by), call())
    assert answer.outputs["y"].tolist() == [1, 1, 1, 1]
    assert count(telemetry, "success") == 1


def test_failure_is_told_without_the_runtimes_words(
    engine: Engine, by: Assembler, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Internal) as failed:
        engine.infer(loaded(version(1), Broken(), by), call())
    assert "secret" not in failed.value.message
    assert [getattr(record, "error", "") for record in caplog.records] == ["/src/secret.cc: divided"]
    assert count(telemetry, "failure") == 1


def test_refusal_is_passed_on(engine: Engine, by: Assembler, telemetry: Telemetry) -> None:
    broken = Broken()
    broken.problem = Invalid("not UTF-8")
    with pytest.raises(Invalid, match="not UTF-8"):
        engine.infer(loaded(version(1), broken, by), call())
    assert count(telemetry, "failure") == 1


@pytest.mark.parametrize("gone", [{"expires": 0.0}, {"alive": lambda: False}])
def test_nothing_runs_for_a_caller_who_has_gone(engine: Engine, by: Assembler, gone: dict[str, Any]) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.infer(loaded(version(1), Broken(), by), call(**gone))


def test_answers_are_bounded(engine: Engine, by: Assembler) -> None:
    with pytest.raises(Exhausted, match="68 bytes"):
        engine.infer(loaded(version(1), by=by), call({"x": np.ones(17, np.float32)}))


def test_forgets_versions_that_are_gone(engine: Engine, by: Assembler, telemetry: Telemetry) -> None:
    one = loaded(version(1), by=by)
    engine.infer(one, call())
    by.forget(one)
    assert count(telemetry, "success") is None


def test_version_made_anew_keeps_its_numbers_when_the_old_one_goes(
    engine: Engine, by: Assembler, telemetry: Telemetry
) -> None:
    old, new = (loaded(version(1, artifact=letter), by=by) for letter in "ab")
    engine.infer(old, call())
    engine.infer(new, call())
    by.forget(old)
    engine.infer(new, call())
    assert count(telemetry, "success") == 3
