"""Running requests."""

import contextvars
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from opentelemetry.context import Context

from tests.unit.inference.fakes import EchoRuntime, version
from tidemill.errors import DeadlineExceeded, Exhausted, Internal, Invalid
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.runtimes.base import Array
from tidemill.rpc import deadline
from tidemill.telemetry.setup import Telemetry, setup

X = {"x": np.ones(4, np.float32)}


class Broken(EchoRuntime):
    """Fails with what the test has put there."""

    problem: Exception = Internal("failed")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        raise self.problem from ZeroDivisionError("/src/secret.cc: divided")


@pytest.fixture
def telemetry() -> Telemetry:
    return setup("test")


@pytest.fixture
def engine(telemetry: Telemetry) -> Engine:
    return Engine(telemetry.tracer, telemetry.registry, largest_answer=64)


def count(telemetry: Telemetry, outcome: str) -> float | None:
    labels = {"model": "m", "version": "1", "outcome": outcome}
    return telemetry.registry.get_sample_value("tidemill_inferences_total", labels)


def test_runs_and_counts(engine: Engine, telemetry: Telemetry) -> None:
    (y,) = engine.run(Loaded(version(1), EchoRuntime(), Context()), X, ["y"])
    assert y.tolist() == [1, 1, 1, 1]
    assert count(telemetry, "success") == 1


def test_failure_is_told_without_the_runtimes_words(
    engine: Engine, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Internal) as failed:
        engine.run(Loaded(version(1), Broken(), Context()), X, ["y"])
    assert "secret" not in failed.value.message
    assert [getattr(record, "error", "") for record in caplog.records] == ["/src/secret.cc: divided"]
    assert count(telemetry, "failure") == 1


def test_refusal_is_passed_on(engine: Engine, telemetry: Telemetry) -> None:
    broken = Broken()
    broken.problem = Invalid("not UTF-8")
    with pytest.raises(Invalid, match="not UTF-8"):
        engine.run(Loaded(version(1), broken, Context()), X, ["y"])
    assert count(telemetry, "failure") == 1


def test_nothing_runs_for_a_caller_who_has_gone(engine: Engine) -> None:
    def late() -> None:
        deadline.start(-1)
        with pytest.raises(DeadlineExceeded):
            engine.run(Loaded(version(1), Broken(), Context()), X, ["y"])

    contextvars.copy_context().run(late)


def test_answers_are_bounded(engine: Engine) -> None:
    with pytest.raises(Exhausted, match="68 bytes"):
        engine.run(Loaded(version(1), EchoRuntime(), Context()), {"x": np.ones(17, np.float32)}, ["y"])


def test_forgets_versions_that_are_gone(engine: Engine, telemetry: Telemetry) -> None:
    loaded = Loaded(version(1), EchoRuntime(), Context())
    engine.forget(loaded)
    engine.run(loaded, X, ["y"])
    engine.forget(loaded)
    assert count(telemetry, "success") is None


def test_version_made_anew_keeps_its_numbers_when_the_old_one_goes(engine: Engine, telemetry: Telemetry) -> None:
    old, new = (Loaded(version(1, artifact=letter), EchoRuntime(), Context()) for letter in "ab")
    engine.run(old, X, ["y"])
    engine.run(new, X, ["y"])
    engine.forget(old)
    engine.run(new, X, ["y"])
    assert count(telemetry, "success") == 3
