"""Data sets in the format of the MNIST files: what is read, and what is refused."""

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.datafiles import idx, mnist_like, write, write_idx
from tidemill.errors import Invalid
from tidemill.training.datasets.base import Options
from tidemill.training.datasets.idx import Idx
from tidemill.training.samples import Dataset

ARRAYS = mnist_like()


def read(files: dict[str, Path], limit: int = 1 << 20) -> Dataset:
    return Idx.read(files, Options(limit=limit))


@pytest.mark.parametrize("packed", [False, True])
def test_the_four_files(tmp_path: Path, packed: bool) -> None:
    dataset = read(write_idx(tmp_path, ARRAYS, packed=packed))
    assert np.array_equal(dataset.samples.x, ARRAYS["train-images-idx3-ubyte"])
    assert dataset.samples.y.tolist() == ARRAYS["train-labels-idx1-ubyte"].tolist()
    assert dataset.labels == ("0", "1")
    assert dataset.test is not None
    assert np.array_equal(dataset.test.x, ARRAYS["t10k-images-idx3-ubyte"])


def test_files_for_training_alone_and_other_files_beside(tmp_path: Path) -> None:
    files = write_idx(tmp_path, {name: array for name, array in ARRAYS.items() if name.startswith("train")})
    assert read({**files, **write(tmp_path, {"README.txt": b"hello"})}).test is None


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
def test_every_element_type(tmp_path: Path, code: int, dtype: str) -> None:
    values = np.arange(-4, 4).reshape(4, 2).astype(dtype)
    labels = np.array([0, 1, 0, 1], np.uint8)
    files = write(tmp_path, {"train-images.idx": idx(values, code), "train-labels.idx": idx(labels)})
    assert np.array_equal(read(files).samples.x, values)


IMAGES, LABELS = ARRAYS["train-images-idx3-ubyte"], ARRAYS["train-labels-idx1-ubyte"]


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (b"", idx(LABELS), "does not begin like"),
        (b"\x89PNG" + idx(IMAGES), idx(LABELS), "does not begin like"),
        (idx(IMAGES, 0x0A), idx(LABELS), "does not begin like"),
        (bytes([0, 0, 8, 0]), idx(LABELS), "does not begin like"),
        (bytes([0, 0, 8, 9]) + b"\0" * 100, idx(LABELS), "does not begin like"),
        (bytes([0, 0, 8, 3, 0, 0]), idx(LABELS), "ends within its header"),
        (idx(IMAGES)[:-1], idx(LABELS), "ends early"),
        (idx(IMAGES) + b"\0", idx(LABELS), "more bytes"),
        (idx(IMAGES), idx(LABELS[:-1]), "x has 40 samples, y has 39"),
        (idx(LABELS), idx(LABELS), "2 to 5 dimensions"),
        (idx(IMAGES), idx(IMAGES), "list of classes"),
        (idx(IMAGES), idx(LABELS * 0), "at least two classes"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, idx(LABELS), "at most 1048576 are allowed"),
        (gzip.compress(idx(IMAGES))[:-4], idx(LABELS), "cannot be unpacked"),
        (gzip.compress(idx(IMAGES))[:60], idx(LABELS), "cannot be unpacked"),
        (b"\x1f\x8b" + b"\0" * 50, idx(LABELS), "cannot be unpacked"),
        (gzip.compress(idx(IMAGES) + b"\0" * 10_000_000), idx(LABELS), "more bytes"),
        (gzip.compress(bytes([0, 0, 8, 2, 0, 16, 0, 0, 0, 0, 0, 64]) + bytes(1 << 22)), idx(LABELS), "are allowed"),
    ],
)
def test_files_that_are_no_data_set(tmp_path: Path, images: bytes, labels: bytes, problem: str) -> None:
    files = write(tmp_path, {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels})
    with pytest.raises(Invalid, match=problem) as caught:
        read(files)
    assert caught.value.reason == "BAD_DATASET"


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    files = write_idx(tmp_path, ARRAYS)
    for name, problem in (("train-labels", "no file train-labels"), ("t10k-labels", "both files t10k")):
        with pytest.raises(Invalid, match=problem):
            read({key: path for key, path in files.items() if not key.startswith(name)})
    with pytest.raises(Invalid, match="two files train-images"):
        read({**files, **write(tmp_path, {"train-images.gz": gzip.compress(idx(IMAGES))})})


def test_the_limit_is_for_all_files_together(tmp_path: Path) -> None:
    total = sum(array.nbytes for array in ARRAYS.values())
    files = write_idx(tmp_path, ARRAYS, packed=True)
    assert len(read(files, limit=total).samples) == 40
    with pytest.raises(Invalid, match="are allowed"):
        read(files, limit=total - 1)


def test_damaged_files_are_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    chance = random.Random(5)
    refused = 0
    for turn in range(400):
        raw = bytearray(gzip.compress(idx(IMAGES), mtime=0) if turn % 2 else idx(IMAGES))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(min(len(raw), 24) if chance.random() < 0.5 else len(raw))
            if chance.random() < 0.7:
                raw[at] = chance.randrange(256)
            else:
                del raw[at : at + chance.randint(1, 40)]
        try:
            read(write(tmp_path, {"train-images": bytes(raw), "train-labels": idx(LABELS)}))
        except Invalid:
            refused += 1
    assert refused > 200
