"""Batches are made of calls where they pay, and change no answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pytest

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Internal
from tidemill.inference.calls import Array
from tidemill.inference.configuration import Configuration, DynamicBatching
from tidemill.inference.modelconfig.complete import complete
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.trial import with_batches
from tidemill.tensors.dtypes import DataType

Compute = Callable[[Array], Array]


def doubled(x: Array) -> Array:
    return x * 2


def centred(x: Array) -> Array:
    """Every row depends on the others."""
    found: Array = x - x.mean(0)
    return found


def failing(x: Array) -> Array:
    if len(x) > 1:
        raise Internal("one at a time")
    return x


def one_row(x: Array) -> Array:
    return x[:1]


class Timed(Runtime):
    """Takes so many seconds a run, and so many a row, of a clock of its own."""

    platform = "timed"

    def __init__(self, run: float, row: float, compute: Compute = doubled, *, shape: Sequence[int] = (-1, 3)) -> None:
        self.now = 0.0
        self.runs = 0
        self._run, self._row, self._compute = run, row, compute
        dtype = DataType.INT64 if compute is failing else DataType.FP32
        x, y = (TensorSpec(name, dtype, tuple(shape)) for name in "xy")
        self._signature = Signature((x,), (y,))

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        raise NotImplementedError

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def signature(self) -> Signature:
        return self._signature

    def clock(self) -> float:
        return self.now

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.runs += 1
        self.now += self._run + self._row * len(inputs["x"])
        return [self._compute(inputs["x"])]


def tried(runtime: Timed) -> Configuration:
    whole = complete(Configuration(name="m", backend="onnx"), runtime.signature, runtime.platform)
    assert whole.dynamic is None
    return with_batches(runtime, whole, runtime.clock)


def test_they_are_made_where_they_pay() -> None:
    found = tried(Timed(200e-6, 100e-6))
    assert found.dynamic == DynamicBatching()
    message = pb.ModelConfig.FromString(found.tracked)
    assert message.HasField("dynamic_batching"), "clients see it"
    assert (message.max_batch_size, list(message.dynamic_batching.preferred_batch_size)) == (4, [4])


@pytest.mark.parametrize(
    "runtime",
    [
        Timed(100e-6, 300e-6),
        Timed(10e-6, 5e-6),
        Timed(1e-3, 0, centred),
        Timed(1e-3, 0, failing),
        Timed(1e-3, 0, one_row),
        Timed(1e-3, 0, shape=(-1, -1)),
        Timed(1e-3, 0, shape=(-1, 1 << 23)),
    ],
    ids=["rows cost", "fast", "rows meet", "fails", "one row", "any size", "large"],
)
def test_elsewhere_they_are_not(runtime: Timed) -> None:
    assert tried(runtime).dynamic is None


def test_a_slow_model_is_not_held_up() -> None:
    runtime = Timed(0.5, 0.1)
    assert tried(runtime).dynamic is None
    assert runtime.runs == 1


def test_trying_takes_no_longer_than_a_moment() -> None:
    runtime = Timed(0.02, 0.001)
    assert tried(runtime).dynamic is not None
    assert runtime.now < 0.5


def test_whole_numbers_may_be_positions() -> None:
    seen: list[Any] = []

    class Looking(Timed):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
            seen.append(np.unique(inputs["x"]))
            return super().run(inputs, outputs)

    tried(Looking(1e-3, 0, failing))
    assert {*np.concatenate(seen)} <= {0, 1}
