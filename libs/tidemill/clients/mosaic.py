"""Pieces of several shared memories, seen as one array."""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.tensors.blocks import Array

FLOAT = np.dtype("<f4")
PAGE = mmap.PAGESIZE
_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class Piece:
    """Where some elements of the array lie.

    Args:
        descriptor: of an open file.
        at: first byte there.
        element: first element in the array.
        elements: how many there are.
    """

    descriptor: int
    at: int
    element: int
    elements: int


def assemble(pieces: Sequence[Piece], elements: int, *, written: bool) -> Array | None:
    """An array of float32 that lies in pieces; None when they do not begin on pages, or this system cannot do it.

    Args:
        pieces: in order, without gaps; each but the last ends with a page.
        elements: of the array.
        written: whether it may be written to.

    Raises:
        OSError: they cannot be mapped.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mmap") or not elements or any(_rough(piece, elements) for piece in pieces):
        return None
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    size = -(-FLOAT.itemsize * elements // PAGE) * PAGE
    start = libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    whole = (ctypes.c_char * (FLOAT.itemsize * elements)).from_address(start)
    weakref.finalize(whole, libc.munmap, start, size)
    access = mmap.PROT_READ | (mmap.PROT_WRITE if written else 0)
    for piece in pieces:
        found = libc.mmap(
            start + FLOAT.itemsize * piece.element,
            FLOAT.itemsize * piece.elements,
            access,
            _FIXED | mmap.MAP_SHARED,
            piece.descriptor,
            piece.at,
        )
        if found == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    array = np.frombuffer(memoryview(whole).cast("B"), FLOAT)
    array.flags.writeable = written
    return array


def _rough(piece: Piece, elements: int) -> bool:
    """Whether a piece does not begin, or does not end, where pages do."""
    ends = piece.element + piece.elements
    return bool(
        piece.at % PAGE or FLOAT.itemsize * piece.element % PAGE or (ends != elements and FLOAT.itemsize * ends % PAGE)
    )
