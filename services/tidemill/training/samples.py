"""Samples, the classes they belong to, and the checks that every data set passes however it was read."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.errors import Invalid

Array = np.ndarray[Any, Any]

MAX_CLASSES = 4096
MAX_LABEL = 256
"""Longest class label in characters."""
MAX_DIMENSIONS = 5
"""Most dimensions of a batch of samples."""
_CHUNK = 1 << 20


def bad(problem: str) -> Invalid:
    """An `Invalid` about the content of a data set."""
    return Invalid(f"data set: {problem}", reason="BAD_DATASET", violations={"dataset": problem})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples `x` [N, ...] of any real number type, and the index of each one's class `y` int64 [N]."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indexes: Array) -> "Samples":
        """The samples at these positions, in this order."""
        return Samples(x=self.x[indexes], y=self.y[indexes])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Samples to learn from, names of their classes, and perhaps samples that its maker set apart for testing."""

    samples: Samples
    labels: tuple[str, ...]
    test: Samples | None = None
    tokenizer: str = ""
    """The rule by which texts were made tokens; empty when samples are not texts."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Dimensions of one sample."""
        return tuple(self.samples.x.shape[1:])

    def digest(self) -> str:
        """SHA-256 in hexadecimal of values, element types, shapes and labels, whatever file they came in."""
        arrays = [self.samples.x, self.samples.y]
        if self.test is not None:
            arrays += [self.test.x, self.test.y]
        little = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for a in arrays]
        head = {
            "labels": self.labels,
            "tokenizer": self.tokenizer,
            "arrays": [[f"{a.dtype.kind}{a.dtype.itemsize}", list(a.shape)] for a in little],
        }
        state = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
        for array in little:
            state.update(array.reshape(-1).view(np.uint8).data)
        return state.hexdigest()


def assemble(
    x: Array,
    y: Array,
    *,
    labels: Sequence[str] | None = None,
    test: tuple[Array, Array] | None = None,
    tokenizer: str = "",
) -> Dataset:
    """The data set of samples `x` [N, ...] of the classes `y` [N], whole numbers or texts.

    Args:
        labels: names of the classes, of which `y` then holds indexes; without them every different value is a class,
            numbers in rising order, texts in order of their code points.
        test: samples and classes that are set apart for testing.

    Raises:
        Invalid: with reason BAD_DATASET: wrong types or shapes, values that are not finite, fewer than two classes.
    """
    indexes, found = _classes(y, "y", labels)
    samples = Samples(x=_numbers(x, "x"), y=indexes)
    if len(samples.x) != len(samples.y):
        raise bad(f"x has {len(samples.x)} samples, y has {len(samples.y)} classes")
    apart = None
    if test is not None:
        apart = Samples(x=_numbers(test[0], "x_test"), y=_known(test[1], "y_test", found, labels is not None))
        if len(apart.x) != len(apart.y):
            raise bad(f"x_test has {len(apart.x)} samples, y_test has {len(apart.y)} classes")
        if apart.x.shape[1:] != samples.x.shape[1:]:
            raise bad(f"x has samples of shape {samples.x.shape[1:]}, x_test of shape {apart.x.shape[1:]}")
    return Dataset(samples=samples, labels=found, test=apart, tokenizer=tokenizer)


def _numbers(x: Array, name: str) -> Array:
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
        raise bad(f"{name} must hold numbers of at most 64 bits, not {x.dtype}")
    if not 2 <= x.ndim <= MAX_DIMENSIONS:
        raise bad(f"{name} must have 2 to {MAX_DIMENSIONS} dimensions, samples first, not shape {x.shape}")
    if 0 in x.shape:
        raise bad(f"{name} has no elements: its shape is {x.shape}")
    x = np.ascontiguousarray(x, x.dtype.newbyteorder("="))
    flat = x.reshape(-1)
    if x.dtype.kind == "f":
        most = min(float(np.finfo(np.float32).max), float(np.finfo(x.dtype).max))
        for start in range(0, flat.size, _CHUNK):
            fits = np.abs(flat[start : start + _CHUNK]) <= most  # false for NaN as well
            if not fits.all():
                sample = (start + int(np.argmin(fits))) // (x.size // len(x))
                raise bad(f"{name}: sample {sample} holds a value that is not finite, or too large for 32 bits")
    if x.dtype.kind == "u" and x.dtype.itemsize == 8 and int(flat.max()) > np.iinfo(np.int64).max:
        raise bad(f"{name} holds a value of 2^63 or more")
    return x


def _classes(y: Array, name: str, labels: Sequence[str] | None) -> tuple[Array, tuple[str, ...]]:
    values = _labels(y, name)
    if labels is not None:
        names = tuple(labels)
        _check_names(names)
        return _known(y, name, names, True), names
    unique, indexes = np.unique(values, return_inverse=True)
    if len(unique) > MAX_CLASSES:
        raise bad(f"{name} has {len(unique)} different values; at most {MAX_CLASSES} classes are possible")
    names = tuple(str(value) for value in unique.tolist())
    _check_names(names)
    return indexes.astype(np.int64), names


def _known(y: Array, name: str, names: tuple[str, ...], indexed: bool) -> Array:
    values = _labels(y, name)
    if indexed:
        if values.dtype.kind == "U":
            raise bad(f"{name} must hold indexes into labels, not texts")
        if int(values.min()) < 0 or int(values.max()) >= len(names):
            raise bad(f"{name} must hold indexes in [0, {len(names)}), one for each of labels")
        return values
    index = {label: i for i, label in enumerate(names)}
    try:
        return np.array([index[str(value)] for value in values.tolist()], np.int64)
    except KeyError as missing:
        raise bad(f"{name} has the class {missing.args[0][:40]!r}, which y does not have") from None


def _labels(y: Array, name: str) -> Array:
    """`y` as int64 or text, 1-D."""
    if y.ndim != 1 or len(y) == 0:
        raise bad(f"{name} must be a list of classes, one for each sample, not of shape {y.shape}")
    if y.dtype.kind in "US":
        return texts(y, name)
    if y.dtype.kind not in "biuf" or y.dtype.itemsize > 8:
        raise bad(f"{name} must hold whole numbers or texts, not {y.dtype}")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        raise bad(f"{name} must hold whole numbers or texts: to predict any number is not what classifiers do")
    if y.dtype.kind != "b" and (float(y.max()) >= 2**63 or float(y.min()) < -(2**63)):
        raise bad(f"{name} holds a number beyond 64 bits")
    return y.astype(np.int64)


def texts(array: Array, name: str) -> Array:
    """An array of texts (or of UTF-8 bytes) as texts.

    Raises:
        Invalid: some are not made of Unicode characters.
    """
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError:
            raise bad(f"{name} holds texts that are not UTF-8") from None
    points = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view(np.uint32)
    if points.size and int(points.max()) > sys.maxunicode:
        raise bad(f"{name} holds texts that are not Unicode")
    return array


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) < 2:
        raise bad(f"there must be at least two classes; there is {names[0][:40]!r} alone" if names else "no classes")
    if len(names) > MAX_CLASSES:
        raise bad(f"there are {len(names)} classes; at most {MAX_CLASSES} are possible")
    if len(set(names)) != len(names):
        raise bad("labels must differ from each other")
    for name in names:
        if not 1 <= len(name) <= MAX_LABEL or not name.isprintable():
            raise bad(f"class label {name[:40]!r} must be 1 to {MAX_LABEL} printable characters")
