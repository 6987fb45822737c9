"""Samples as the arrays of a numpy `.npz` file: x, y, and perhaps x_test, y_test, labels.

The file is read by hand: a zip file with at most five members, each a `.npy` array whose header is matched by a
pattern, never evaluated. Members that would need unpickling do not match. Sizes are those declared in the zip
directory, checked against each other and the limit before anything is unpacked, and never exceeded then.
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from tidemill.training.datasets.base import Options, Reader, only, too_large
from tidemill.training.samples import Array, Dataset, assemble, bad, texts

KEYS = ("x", "y", "x_test", "y_test", "labels")
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{'descr': '([<>|](?:b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18},?)?)\), *\} *\n?"
)
_MAX_HEADER = 4096
_MAX_DIRECTORY = 4096
_TAIL = 22 + 65535
"""Where the end record of a zip file lies: its own size and that of the longest comment."""


class Npz(Reader):
    """Arrays `x` [N, ...] and `y` [N] of a `.npz` file; `x_test`, `y_test` and `labels` (texts) may be there too."""

    @classmethod
    def accepts(cls, names: Sequence[str]) -> bool:
        """One file `*.npz`."""
        return sum(name.lower().endswith(".npz") for name in names) == 1

    @classmethod
    def read(cls, files: Mapping[str, Path], options: Options) -> Dataset:
        """The arrays as a data set."""
        arrays = _arrays(only(files, ".npz"), options.limit)
        missing = [key for key in ("x", "y") if key not in arrays]
        if missing:
            raise bad(f"the .npz file has no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}")
        if ("x_test" in arrays) != ("y_test" in arrays):
            raise bad("the .npz file must have both x_test and y_test, or neither")
        test = (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None
        labels = _texts(arrays["labels"]) if "labels" in arrays else None
        return assemble(arrays["x"], arrays["y"], labels=labels, test=test)


def _arrays(path: Path, limit: int) -> dict[str, Array]:
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, limit)
            arrays = {}
            for member in members:
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _array(stream, member.file_size, member.filename)
            return arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, OSError, ValueError) as error:
        # A seek to a place that only a forged directory knows is an OSError or a ValueError.
        raise bad(f"the .npz file cannot be read: {error}") from error


def _check_directory(path: Path) -> None:
    """Refuse a zip directory that is larger than five members need, before `zipfile` reads all of it."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL))
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise bad("the .npz file is not a zip file")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if size > _MAX_DIRECTORY or b"PK\x06\x07" in tail[max(0, end - 20) : end]:
        raise bad("the .npz file has a directory larger than numpy writes for such arrays")


def _check_members(members: Sequence[zipfile.ZipInfo], limit: int) -> None:
    names = [member.filename for member in members]
    unknown = [name for name in names if name.removesuffix(".npy") not in KEYS or not name.endswith(".npy")]
    if unknown or len(set(names)) != len(names):
        raise bad(f"the .npz file must hold arrays named {', '.join(KEYS)}, each once; it has {str(names)[:200]}")
    for member in members:
        if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise bad(f"{member.filename} is encrypted or packed in a way numpy does not write")
    size = sum(member.file_size for member in members)
    if size > limit:
        raise too_large("the .npz file", size, limit)


def _array(stream: IO[bytes], size: int, name: str) -> Array:
    start = stream.read(8)
    if start[:6] != _MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise bad(f"{name} is not a numpy array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        raise bad(f"{name} has a header of {length} bytes")
    header = stream.read(length)
    match = _HEADER.fullmatch(header)
    if match is None:
        raise bad(f"{name} has a header that is not one of numbers or texts: {header[:80]!r}")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(part) for part in match[3].replace(b" ", b"").split(b",") if part)
    wanted = math.prod(shape) * dtype.itemsize
    if len(shape) > 8 or wanted != size - 8 - width - length:
        raise bad(f"{name} has {size - 8 - width - length} bytes of data; {dtype} of shape {shape} needs {wanted}")
    data = stream.read(wanted)
    if len(data) != wanted:
        raise bad(f"{name} ends early")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if match[2] == b"True" else "C")


def _texts(array: Array) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise bad(f"labels must be a list of texts, not {array.dtype} of shape {array.shape}")
    return [str(text) for text in texts(array, "labels").tolist()]
