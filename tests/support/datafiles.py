"""Files of data sets, well-formed and otherwise."""

import csv
import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def idx(array: Array, code: int = 0x08) -> bytes:
    """`array` as an IDX file; its elements must be of the type that `code` stands for, big-endian."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(train: int = 40, test: int = 20, seed: int = 0) -> dict[str, Array]:
    """Small images of two classes, dark and light, under the names of the MNIST files."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = (labels[:, None, None] * 200 + random.integers(0, 50, (count, 8, 8))).astype(np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = images
        arrays[f"{prefix}-labels-idx1-ubyte"] = labels
    return arrays


def write(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    """The files in `folder`, by name."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


def write_idx(folder: Path, arrays: Mapping[str, Array], *, packed: bool = False) -> dict[str, Path]:
    """IDX files of `arrays`, perhaps gzip-compressed."""
    if packed:
        return write(folder, {f"{name}.gz": gzip.compress(idx(array)) for name, array in arrays.items()})
    return write(folder, {name: idx(array) for name, array in arrays.items()})


def write_npz(folder: Path, **arrays: Any) -> dict[str, Path]:
    """One `.npz` file, as numpy writes it."""
    np.savez_compressed(folder / "data.npz", **arrays)
    return {"data.npz": folder / "data.npz"}


def write_csv(folder: Path, rows: Sequence[Sequence[object]]) -> dict[str, Path]:
    """One table."""
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return {"table.csv": folder / "table.csv"}
