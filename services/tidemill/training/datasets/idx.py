"""Samples in the IDX format of the MNIST files, plain or gzip-compressed.

A file is a magic number (two zero bytes, the element type, the number of dimensions), the dimensions as 32-bit
big-endian numbers, and the elements in row-major order (LeCun, Cortes and Burges, "The MNIST database").
"""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tidemill.training.datasets.base import Options, Reader, too_large
from tidemill.training.samples import Array, Dataset, assemble, bad

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
ROLES = ("train-images", "train-labels", "t10k-images", "t10k-labels")
"""How the names of the four files begin."""


class Idx(Reader):
    """Images and labels for training, and the two `t10k` files for testing when they are there."""

    @classmethod
    def accepts(cls, names: Sequence[str]) -> bool:
        """At least the two files for training."""
        return all(any(name.startswith(role) for name in names) for role in ROLES[:2])

    @classmethod
    def read(cls, files: Mapping[str, Path], options: Options) -> Dataset:
        """The arrays of the files as a data set."""
        arrays: dict[str, Array] = {}
        left = options.limit
        for name, path in sorted(files.items()):
            role = next((role for role in ROLES if name.startswith(role)), None)
            if role is None:
                continue
            if role in arrays:
                raise bad(f"there are two files {role}*")
            arrays[role] = _array(path, name, left)
            left -= arrays[role].nbytes
        missing = [role for role in ROLES[:2] if role not in arrays]
        if missing:
            raise bad(f"there is no file {missing[0]}*")
        if (ROLES[2] in arrays) != (ROLES[3] in arrays):
            raise bad("there must be both files t10k-images* and t10k-labels*, or neither")
        test = (arrays[ROLES[2]], arrays[ROLES[3]]) if ROLES[2] in arrays else None
        return assemble(arrays[ROLES[0]], arrays[ROLES[1]], test=test)


def _array(path: Path, name: str, limit: int) -> Array:
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not packed:
                return _parse(plain, name, limit)
            with gzip.open(plain) as stream:
                return _parse(stream, name, limit)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        raise bad(f"{name} cannot be unpacked: {error}") from error


def _parse(stream: BinaryIO | gzip.GzipFile, name: str, limit: int) -> Array:
    magic = stream.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 4:
        raise bad(f"{name} does not begin like an IDX file of 1 to 4 dimensions")
    sizes = stream.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise bad(f"{name} ends within its header")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    dtype = np.dtype(TYPES[magic[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > limit:
        raise too_large(name, wanted, limit)
    data = stream.read(wanted)
    if len(data) != wanted:
        raise bad(f"{name} ends early: shape {shape} needs {wanted} bytes, there are {len(data)}")
    if stream.read(1):
        raise bad(f"{name} has more bytes than its shape {shape} needs")
    return np.frombuffer(data, dtype).reshape(shape)
