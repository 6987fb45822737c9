"""Every codec carries what it says it carries, refuses everything else, and learns as well as exact gradients do."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tests.support import gradients
from tidemill import codecs, errors, plugins
from tidemill.codecs.base import Codec
from tidemill.compression import catalogue
from tidemill.tensors.blocks import Array

NAMES = catalogue.names()
REASONS = {"SIZE_MISMATCH", "NON_FINITE", "BAD_ENCODING"}
WORST = np.frombuffer(b"\xff" * 2**16, np.uint8)


def residual(values: Array) -> Array:
    return np.zeros_like(values)


def encoded(codec: Codec, values: Array) -> bytes:
    return bytes(codec.encode(values, residual(values)))


def decoded(codec: Codec, data: Any, elements: int) -> Array:
    out = np.full(elements, np.nan, gradients.FLOAT)
    codec.decode(data, elements, out)
    return out


def test_there_are_these() -> None:
    assert {"fp32", "fp16", "bf16", "int8", "topk"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", gradients.SIZES)
def test_carries_every_kind_of_block(name: str, size: int) -> None:
    codec = catalogue.make(name)
    for kind, values in gradients.kinds(size).items():
        before, data = values.copy(), encoded(codec, values)
        assert len(data) <= codec.bytes_of(size), kind
        np.testing.assert_array_equal(values, before, kind)
        codec.check(data, size)
        out = decoded(codec, data, size)
        assert np.isfinite(out).all(), kind
        assert np.abs(out).max() <= np.abs(values).max() * (1 + 2**-8), kind
        assert decoded(codec, memoryview(bytearray(data)), size).tobytes() == out.tobytes(), kind


@pytest.mark.parametrize("name", NAMES)
def test_the_same_values_give_the_same_bytes_wherever_they_are_written(name: str) -> None:
    codec, values = catalogue.make(name), gradients.of(100_001)
    data = encoded(codec, values)
    assert encoded(catalogue.make(name), values.copy()) == data
    out = np.full(codec.bytes_of(values.size) + 8, 0xEE, np.uint8)
    written = codec.encode(values, residual(values), out)
    assert bytes(written) == data == out[: len(data)].tobytes()
    assert (out[len(data) :] == 0xEE).all()
    frozen = values.copy()
    frozen.setflags(write=False)
    assert encoded(codec, frozen) == data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [1.0, 0.25, 1 / 3])
def test_accumulates_what_it_decodes(name: str, weight: float) -> None:
    codec, values, into = catalogue.make(name), gradients.of(100_001), gradients.of(100_001, 9)
    data = encoded(codec, values)
    wanted = into + decoded(codec, data, values.size) * np.float32(weight)
    codec.accumulate(data, values.size, into, weight)
    np.testing.assert_array_equal(into, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fp32"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4999])
def test_does_not_encode_what_is_not_finite(name: str, bad: float, place: int) -> None:
    codec, values = catalogue.make(name), gradients.of(5000)
    values[place] = bad
    left = gradients.of(5000, 3)
    before = left.copy()
    with pytest.raises(errors.Invalid) as refusal:
        codec.encode(values, left)
    assert refusal.value.reason == "NON_FINITE"
    np.testing.assert_array_equal(left, before)


@pytest.mark.parametrize("name", NAMES)
def test_does_not_decode_what_is_not_finite(name: str) -> None:
    codec = catalogue.make(name)
    for value in (np.nan, np.inf, -np.inf):
        half = {"fp16": np.array([value], "<f2"), "bf16": np.array([value], "<f4").view("<u2")[1:]}
        single = np.array([value], "<f4")
        forged = {
            **half,
            "fp32": single,
            "int8": np.concatenate([single.view("u1"), np.zeros(1, "u1")]),
            "topk": np.concatenate([np.zeros(4, "u1"), single.view("u1")]),
        }
        with pytest.raises(errors.Invalid) as refusal:
            codec.check(forged[name].tobytes(), 1)
        assert refusal.value.reason == "NON_FINITE"


@pytest.mark.parametrize("name", NAMES)
def test_refuses_other_sizes_and_leaves_everything_as_it_was(name: str) -> None:
    codec, values = catalogue.make(name), gradients.of(5000)
    data = encoded(codec, values)
    too_much = data + bytes(codec.bytes_of(values.size))
    for wrong in (data[:-1], data + b"\0", too_much, data[:-3], WORST.tobytes(), bytes(2**16)):
        out, into = gradients.of(5000, 1), gradients.of(5000, 2)
        attempts: list[Callable[[], None]] = [
            partial(codec.check, wrong, 5000),
            partial(codec.decode, wrong, 5000, out),
            partial(codec.accumulate, wrong, 5000, into, 0.5),
        ]
        for attempt in attempts:
            with pytest.raises(errors.Invalid) as refusal:
                attempt()
            assert refusal.value.reason == "SIZE_MISMATCH"
            assert "data" in refusal.value.violations
        np.testing.assert_array_equal(out, gradients.of(5000, 1))
        np.testing.assert_array_equal(into, gradients.of(5000, 2))


def survives(codec: Codec, data: bytes, elements: int) -> None:
    """Either data is refused with nothing changed, or what comes out is finite."""
    out = np.zeros(elements, gradients.FLOAT)
    reason = ""
    try:
        codec.check(data, elements)
    except errors.Invalid as refusal:
        reason = refusal.reason
    if not reason:
        codec.decode(data, elements, out)
        assert np.isfinite(out).all()
        return
    assert reason in REASONS
    with pytest.raises(errors.Invalid):
        codec.decode(data, elements, out)
    with pytest.raises(errors.Invalid):
        codec.accumulate(data, elements, out, 1.0)
    assert not out.any()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(random=st.randoms(use_true_random=False), elements=st.integers(1, 40), short=st.integers(0, 40))
def test_survives_any_bytes(name: str, random: Any, elements: int, short: int) -> None:
    codec = catalogue.make(name, {"fraction": 0.5} if name == "topk" else {})
    survives(codec, random.randbytes(max(0, codec.bytes_of(elements) - short)), elements)
    survives(codec, random.randbytes(codec.bytes_of(elements)), elements)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(
    values=gradients.floats(),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_survives_changed_bytes(name: str, values: Array, flips: list[tuple[int, int]]) -> None:
    codec = catalogue.make(name, {"fraction": 0.5} if name == "topk" else {})
    data = bytearray(encoded(codec, values))
    for place, value in flips:
        if data:
            data[place % len(data)] = value
    survives(codec, bytes(data), values.size)


PROGRAM = """
import hashlib, json, sys
import numpy as np
from tests.support import gradients
from tidemill.compression import catalogue
digests = {}
for name in catalogue.names():
    codec, found = catalogue.make(name), hashlib.sha256()
    for values in gradients.kinds(100_001).values():
        data = codec.encode(values, np.zeros_like(values))
        out = np.empty_like(values)
        codec.decode(data, values.size, out)
        found.update(data)
        found.update(out)
    digests[name] = found.hexdigest()
print(json.dumps([digests, "torch" in sys.modules]))
"""


def test_needs_no_pytorch_and_gives_the_same_bits_with_it() -> None:
    import torch  # noqa: F401  codecs use it where it is loaded

    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    theirs, loaded = json.loads(run.stdout)
    assert not loaded
    for name in NAMES:
        codec, found = catalogue.make(name), hashlib.sha256()
        for values in gradients.kinds(100_001).values():
            data = encoded(codec, values)
            found.update(data)
            found.update(decoded(codec, data, values.size).tobytes())
        assert found.hexdigest() == theirs[name], name


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself(name: str) -> None:
    kind = plugins.load(codecs, name, Codec)
    described = next(d for d in catalogue.describe() if d.name == name)
    assert described.text
    assert described.keeps_residual == kind.keeps_residual
    assert [p[0] for p in described.parameters] == [field.name for field in dataclasses.fields(kind.Config)]
    assert catalogue.check(name, {}) == {field.name: field.default for field in dataclasses.fields(kind.Config)}
    with pytest.raises(errors.Invalid) as unknown:
        catalogue.make(name, {"speed": 1})
    assert unknown.value.reason == "UNKNOWN_PARAMETER"


def test_an_unknown_codec_is_named_with_those_there_are() -> None:
    with pytest.raises(errors.Invalid, match="topk") as unknown:
        catalogue.make("zip")
    assert unknown.value.reason == "UNKNOWN_CODEC"


class Logistic:
    """Logistic regression on the digits, regularized so that it has a minimum to reach."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        inputs = np.hstack([images / 16, np.ones((len(images), 1))]).astype(gradients.FLOAT)
        targets = np.eye(10, dtype=gradients.FLOAT)[labels]
        self.whole = (inputs, targets)
        self.halves = [(inputs[worker::2].copy(), targets[worker::2].copy()) for worker in range(2)]

    def loss(self, weights: Array, inputs: Array, targets: Array) -> tuple[float, Array]:
        """Loss and gradient over some samples."""
        scores = inputs @ weights.reshape(-1, 10)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        loss = -np.log((odds * targets).sum(axis=1)).mean() + 5e-4 * (weights**2).sum()
        gradient = inputs.T @ (odds - targets) / len(inputs) + 1e-3 * weights.reshape(-1, 10)
        return float(loss), gradient.astype(gradients.FLOAT).reshape(-1)

    def train(self, codec: Codec) -> float:
        """The final loss of two workers, each with its half of the samples and its residual."""
        with threadpool_limits(limits=1):  # threads cost more than such small products
            return self._train(codec)

    def _train(self, codec: Codec) -> float:
        weights = np.zeros(65 * 10, gradients.FLOAT)
        residuals = [residual(weights), residual(weights)]
        for _ in range(500):
            total = np.zeros_like(weights)
            for half, left in zip(self.halves, residuals, strict=True):
                _, gradient = self.loss(weights, *half)
                codec.accumulate(codec.encode(gradient, left), weights.size, total, 0.5)
            weights -= np.float32(0.5) * total
        return self.loss(weights, *self.whole)[0]


@pytest.fixture(scope="module")
def exact() -> float:
    return Logistic().train(catalogue.make("fp32"))


@pytest.mark.parametrize("name", NAMES)
def test_learns_as_well_as_exact_gradients(name: str, exact: float) -> None:
    assert exact < 0.3  # from 2.3
    assert Logistic().train(catalogue.make(name)) == pytest.approx(exact, rel=0.02)
