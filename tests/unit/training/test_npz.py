"""Data sets as numpy files: what is read, and what is refused."""

import io
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.datafiles import write_npz
from tidemill.errors import Invalid
from tidemill.training.datasets.base import Options
from tidemill.training.datasets.npz import Npz
from tidemill.training.samples import Dataset

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 0, 1, 0, 1])


def read(path: Path, limit: int = 1 << 20) -> Dataset:
    return Npz.read({"data.npz": path}, Options(limit=limit))


def written(folder: Path, **arrays: Any) -> Dataset:
    return read(write_npz(folder, **arrays)["data.npz"])


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def zipped(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "made.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class TestWhatIsRead:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", ">i4", "float16", "float64", ">f4", "bool"])
    def test_numbers_of_any_type_keep_their_values(self, tmp_path: Path, dtype: str) -> None:
        x = (X % 2).astype(dtype)
        dataset = written(tmp_path, x=x, y=Y)
        assert np.array_equal(dataset.samples.x, x)
        assert dataset.samples.y.tolist() == Y.tolist()
        assert dataset.labels == ("0", "1")
        assert dataset.test is None

    def test_column_order_is_undone(self, tmp_path: Path) -> None:
        dataset = written(tmp_path, x=np.asfortranarray(X), y=Y)
        assert np.array_equal(dataset.samples.x, X)

    def test_classes_may_be_texts(self, tmp_path: Path) -> None:
        dataset = written(tmp_path, x=X, y=np.array(["no", "yes", "no", "yes", "no", "maybe"]))
        assert dataset.labels == ("maybe", "no", "yes")
        assert dataset.samples.y.tolist() == [1, 2, 1, 2, 1, 0]

    def test_classes_may_have_names(self, tmp_path: Path) -> None:
        dataset = written(tmp_path, x=X, y=Y, labels=np.array(["cat", "dog", "emu"]))
        assert dataset.labels == ("cat", "dog", "emu")
        assert dataset.samples.y.tolist() == Y.tolist()

    def test_whole_floats_and_gaps_make_classes(self, tmp_path: Path) -> None:
        dataset = written(tmp_path, x=X, y=np.array([7.0, -2.0, 7.0, 10.0, 7.0, -2.0]))
        assert dataset.labels == ("-2", "7", "10")
        assert dataset.samples.y.tolist() == [1, 0, 1, 2, 1, 0]

    def test_test_samples_of_its_maker_are_kept_apart(self, tmp_path: Path) -> None:
        dataset = written(tmp_path, x=X, y=Y + 5, x_test=X[:2], y_test=np.array([6, 5]))
        assert dataset.test is not None
        assert np.array_equal(dataset.test.x, X[:2])
        assert dataset.test.y.tolist() == [1, 0]

    def test_files_that_are_not_compressed(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", x=X, y=Y)
        assert np.array_equal(read(tmp_path / "data.npz").samples.x, X)

    def test_the_digest_is_of_the_content(self, tmp_path: Path) -> None:
        (tmp_path / "again").mkdir()
        first = written(tmp_path, x=X, y=Y).digest()
        assert written(tmp_path / "again", y=Y.astype(np.int8), x=np.asfortranarray(X)).digest() == first
        assert written(tmp_path, x=X + 1, y=Y).digest() != first
        assert written(tmp_path, x=X, y=Y, labels=np.array(["a", "b"])).digest() != first
        assert written(tmp_path, x=X.astype(np.float64), y=Y).digest() != first


OBJECTS = np.array([{"a": 1}, None], dtype=object)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("arrays", "problem"),
        [
            ({"y": Y}, "no array 'x'"),
            ({"x": X}, "no array 'y'"),
            ({"x": X, "y": Y, "z": Y}, "named x, y"),
            ({"x": X, "y": Y, "x_test": X}, "both x_test and y_test"),
            ({"x": X, "y": Y[:5]}, "x has 6 samples, y has 5"),
            ({"x": X[:, 0], "y": Y}, "2 to 5 dimensions"),
            ({"x": X[:, :0], "y": Y}, "no elements"),
            ({"x": X.astype(complex), "y": Y}, "header"),
            ({"x": X.astype("datetime64[s]"), "y": Y}, "header"),
            ({"x": np.array([["a"], ["b"]]), "y": Y[:2]}, "must hold numbers"),
            ({"x": np.where(X == 9, np.nan, X), "y": Y}, "sample 2 holds a value that is not finite"),
            ({"x": np.where(X == 23, np.inf, X), "y": Y}, "sample 5"),
            ({"x": np.full((2, 2), 1e300), "y": Y[:2]}, "too large for 32 bits"),
            ({"x": np.full((2, 2), 2**63, np.uint64), "y": Y[:2]}, "2\\^63"),
            ({"x": X, "y": np.zeros(6, int)}, "at least two classes"),
            ({"x": X, "y": np.array([0, 0.5, 1, 1, 0, 0])}, "whole numbers"),
            ({"x": X, "y": Y.reshape(6, 1)}, "list of classes"),
            ({"x": X, "y": Y, "labels": np.array(["a"])}, "at least two classes"),
            ({"x": X, "y": Y + 1, "labels": np.array(["a", "b"])}, r"indexes in \[0, 2\)"),
            ({"x": X, "y": Y, "labels": np.array(["a", "a"])}, "differ"),
            ({"x": X, "y": Y, "labels": np.array(["a", "b\n"])}, "printable"),
            ({"x": X, "y": Y, "labels": np.array([1, 2])}, "list of texts"),
            ({"x": X, "y": Y, "labels": np.array([b"a", b"\xff"])}, "UTF-8"),
            ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "class '2', which y does not have"),
            ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, "x_test of shape"),
            ({"x": OBJECTS.reshape(2, 1), "y": Y[:2]}, "header"),
            ({"x": X, "y": OBJECTS}, "header"),
        ],
    )
    def test_content_that_is_no_data_set(self, tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
        np.savez(tmp_path / "data.npz", allow_pickle=True, **arrays)
        with pytest.raises(Invalid, match=problem) as caught:
            read(tmp_path / "data.npz")
        assert caught.value.reason == "BAD_DATASET"

    def test_more_than_the_limit(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path, x=np.zeros((1000, 1000), np.uint8), y=np.arange(1000) % 2)["data.npz"]
        assert path.stat().st_size < 10_000
        with pytest.raises(Invalid, match="at most 100000 are allowed"):
            read(path, limit=100_000)

    def test_a_member_larger_than_it_declares_is_not_unpacked(self, tmp_path: Path) -> None:
        bomb = npy(np.zeros(50_000_000, np.uint8))
        path = zipped(tmp_path, {"x.npy": bomb, "y.npy": npy(Y)})
        raw = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            at = raw.index(signature) + offset
            raw[at : at + 4] = struct.pack("<I", 200)
        path.write_bytes(raw)
        with pytest.raises(Invalid):
            read(path, limit=10_000)

    def test_a_directory_of_a_million_members_is_not_read(self, tmp_path: Path) -> None:
        path = zipped(tmp_path, {f"{i}.npy": b"" for i in range(2000)}, zipfile.ZIP_STORED)
        with pytest.raises(Invalid, match="directory larger"):
            read(path)

    @pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_other_ways_of_packing(self, tmp_path: Path, compression: int) -> None:
        with pytest.raises(Invalid, match="numpy does not write"):
            read(zipped(tmp_path, {"x.npy": npy(X), "y.npy": npy(Y)}, compression))

    def test_paths_and_doubles(self, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="named x, y"):
            read(zipped(tmp_path, {"../x.npy": npy(X), "y.npy": npy(Y)}))
        path = tmp_path / "double.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", npy(X))
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("x.npy", npy(X))
        with pytest.raises(Invalid, match="each once"):
            read(path)

    @pytest.mark.parametrize(
        "header",
        [
            b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
            b"__import__('os').system('true')",
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999999, 999999999999999999), }",
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            b"{'descr': '<U0', 'fortran_order': False, 'shape': (999999999999,), }",
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
            b"(" * 4000,
            b"",
        ],
    )
    def test_headers_that_numpy_does_not_write_for_numbers(self, tmp_path: Path, header: bytes) -> None:
        member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 4
        with pytest.raises(Invalid):
            read(zipped(tmp_path, {"x.npy": member, "y.npy": npy(Y)}))

    def test_texts_outside_of_unicode(self, tmp_path: Path) -> None:
        labels = np.array(["a", "b"])
        labels.view(np.uint32)[1] = 0x7FFFFFFF
        path = zipped(tmp_path, {"x.npy": npy(X), "y.npy": npy(Y), "labels.npy": npy(labels)})
        with pytest.raises(Invalid, match="not Unicode"):
            read(path)


def test_damaged_files_are_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    """Bytes are changed, cut out or cut off, also behind repaired checksums: either it is read, or it is Invalid."""
    good = write_npz(tmp_path, x=X, y=Y, labels=np.array(["a", "b"]), x_test=X, y_test=Y)["data.npz"].read_bytes()
    chance = random.Random(7)
    refused = 0
    path = tmp_path / "bad.npz"
    for _ in range(400):
        raw = bytearray(good)
        match chance.randrange(3):
            case 0:
                for _ in range(chance.randint(1, 8)):
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
            case 1:
                del raw[chance.randrange(len(raw)) :]
            case _:
                start = chance.randrange(len(raw))
                del raw[start : start + chance.randint(1, 50)]
        path.write_bytes(raw)
        try:
            read(path)
        except Invalid:
            refused += 1
    for _ in range(300):  # damage that no checksum shows
        member = bytearray(npy(X))
        for _ in range(chance.randint(1, 4)):
            member[chance.randrange(140)] = chance.randrange(256)
        try:
            read(zipped(tmp_path, {"x.npy": bytes(member), "y.npy": npy(Y)}))
        except Invalid:
            refused += 1
    assert refused > 400
