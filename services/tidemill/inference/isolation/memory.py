"""Tensors in memory that two processes share.

Memory comes in segments: anonymous files that have no name, are sealed against shrinking, and vanish with the last
process that holds them. Each segment belongs to one side, which alone gives out its regions and writes to them; the
other side maps it, reads, and says when it needs a region no more.
"""

import fcntl
import mmap
import os
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from tidemill.inference.calls import Array
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

Place: TypeAlias = tuple[int, int]
"""(segment, offset) of a region."""
Packed: TypeAlias = list[Any]
"""A tensor in a message: [name, datatype, shape, segment, offset, bytes]."""

_ALIGN = 64
_PAGE = 4096


def round_up(size: int, unit: int = _PAGE) -> int:
    """`size`, or the next multiple of `unit` above it."""
    return -(-size // unit) * unit


def create(size: int) -> int:
    """The descriptor of a new segment of so many bytes, which nobody can shrink. Raises OSError."""
    descriptor = os.memfd_create("tidemill", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Arena:
    """Regions of one's own segments, first fit. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}

    @property
    def used(self) -> int:
        """Regions that are given out."""
        with self._lock:
            return sum(len(segment.taken) for segment in self._segments.values())

    def add(self, number: int, memory: mmap.mmap) -> None:
        """Give out regions of this segment too."""
        with self._lock:
            self._segments[number] = _Segment(memory)

    def take(self, size: int) -> Place | None:
        """A region of `size` bytes; None when no segment has room."""
        size = round_up(max(size, 1), _ALIGN)
        with self._lock:
            for number, segment in self._segments.items():
                if (offset := segment.take(size)) is not None:
                    return number, offset
        return None

    def give_back(self, places: Iterable[Sequence[int]]) -> None:
        """These regions are not needed any more."""
        with self._lock:
            for number, offset in places:
                self._segments[number].free(offset)

    def shed(self, keep: int) -> list[int]:
        """Forget unused segments while there are more than `keep` bytes of them; their numbers."""
        with self._lock:
            idle = [number for number, segment in self._segments.items() if not segment.taken]
            spare, gone = sum(len(self._segments[number].memory) for number in idle), []
            for number in reversed(idle):
                if spare <= keep:
                    break
                spare -= len(self._segments.pop(number).memory)
                gone.append(number)
        return gone

    def memory(self, number: int) -> mmap.mmap:
        """The bytes of a segment."""
        return self._segments[number].memory


class _Segment:
    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.taken: dict[int, int] = {}
        self._gaps = [(0, len(memory))]

    def take(self, size: int) -> int | None:
        for index, (start, end) in enumerate(self._gaps):
            if end - start >= size:
                if end - start == size:
                    del self._gaps[index]
                else:
                    self._gaps[index] = (start + size, end)
                self.taken[start] = size
                return start
        return None

    def free(self, start: int) -> None:
        insort(self._gaps, (start, start + self.taken.pop(start)))
        merged = self._gaps[:1]
        for gap in self._gaps[1:]:
            if gap[0] == merged[-1][1]:
                merged[-1] = (merged[-1][0], gap[1])
            else:
                merged.append(gap)
        self._gaps = merged


class Shared:
    """Both directions of one connection, as one side sees them.

    Args:
        grow: called when no segment has room for so many bytes; adds one to `mine`, or raises.
    """

    def __init__(self, grow: Callable[[int], None]) -> None:
        self.mine = Arena()
        self.freed: deque[Place] = deque()
        self._theirs: dict[int, mmap.mmap] = {}
        self._grow = grow

    def attach(self, number: int, memory: mmap.mmap) -> None:
        """The other side writes to this segment."""
        self._theirs[number] = memory

    def detach(self, number: int) -> int:
        """The other side has forgotten a segment; its bytes."""
        return len(self._theirs.pop(number))

    def drain(self) -> list[Place]:
        """Regions of the other side that were not needed any more since the last time."""
        places = []
        while self.freed:
            places.append(self.freed.popleft())
        return places

    def pack(self, tensors: Iterable[tuple[str, DataType, Sequence[Array]]]) -> list[Packed]:
        """Copies tensors into regions of one's own.

        Args:
            tensors: (name, datatype, parts): parts are put together along the first dimension.

        Raises:
            Invalid: BYTES with elements that are none.
            Exhausted and others: what `grow` raises; nothing is kept then.
        """
        packed: list[Packed] = []
        try:
            for name, datatype, parts in tensors:
                packed.append(self._packed(name, datatype, parts))
        except BaseException:
            self.mine.give_back(self.places(packed))
            raise
        return packed

    @staticmethod
    def places(packed: Iterable[Packed]) -> list[Place]:
        """The regions of packed tensors."""
        return [(tensor[3], tensor[4]) for tensor in packed if tensor[5]]

    def unpack(self, tensor: Packed, *, copy: bool) -> Array:
        """The array of a tensor that the other side has packed.

        Args:
            copy: False = a view; its region is free when the last view of it is gone.
        """
        _, kind, shape, number, offset, size = tensor
        datatype = DataType[kind]
        if not size:
            return np.empty(shape, datatype.numpy)
        held = np.frombuffer(self._theirs[number], np.uint8, size, offset)
        if datatype is DataType.BYTES or copy:
            try:
                if datatype is DataType.BYTES:
                    return codec.decode(datatype, shape, held.data)
                found: Array = held.view(datatype.numpy).reshape(shape).copy()
                return found
            finally:
                self.freed.append((number, offset))
        # A deque takes entries whatever else its thread is doing when the last view goes.
        weakref.finalize(held, self.freed.append, (number, offset)).atexit = False
        return held.view(datatype.numpy).reshape(shape)

    def _packed(self, name: str, datatype: DataType, parts: Sequence[Array]) -> Packed:
        shape = list(parts[0].shape)
        if len(parts) > 1:
            shape[0] = sum(len(part) for part in parts)
        raw = [codec.encode(part, datatype) for part in parts] if datatype is DataType.BYTES else None
        count = int(np.prod(shape, dtype=object))
        size = sum(map(len, raw)) if raw is not None else count * datatype.numpy.itemsize
        if not size:
            return [name, datatype.name, shape, 0, 0, 0]
        number, offset = self._take(size)
        memory = self.mine.memory(number)
        if raw is not None:
            for piece in raw:
                memory[offset : offset + len(piece)] = piece
                offset += len(piece)
            return [name, datatype.name, shape, number, offset - size, size]
        target = np.frombuffer(memory, datatype.numpy, count, offset).reshape(shape)
        start = 0
        for part in parts if len(parts) > 1 else ():
            target[start : start + len(part)] = part
            start += len(part)
        if len(parts) == 1:
            np.copyto(target, parts[0], casting="same_kind")
        return [name, datatype.name, shape, number, offset, size]

    def _take(self, size: int) -> Place:
        while (place := self.mine.take(size)) is None:
            self._grow(size)
        return place
