"""A worker's end of the memory that it shares with a shard of the parameter server on its host."""

import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.mosaic import Piece
from tidemill.tensors.blocks import Array, Block

FLOAT = np.dtype("<f4")


def opened(path: str, nonce: bytes, size: int, *, written: bool) -> int:
    """A descriptor of memory that a shard on this host offers.

    Raises:
        OSError: it is not to be opened here, or something else is there: the shard is on another host after all.
    """
    descriptor = os.open(path, (os.O_RDWR if written else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError("the memory has another size")
        if not nonce or os.pread(descriptor, len(nonce), 0) != nonce:
            raise OSError("the memory is another one")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SharedSegment:
    """Gradients that the worker writes, and without rounds the parameters that the shard writes for it.

    Args:
        offer: what the shard says of it.
        blocks: of the shard, in order of index.

    Raises:
        OSError: as `opened`.
    """

    def __init__(self, offer: pb.AttachResponse, blocks: Sequence[Block]) -> None:
        elements = sum(block.elements for block in blocks)
        self.descriptor = opened(offer.path, offer.nonce, offer.size, written=True)
        weakref.finalize(self, os.close, self.descriptor)
        try:
            memory = mmap.mmap(self.descriptor, offer.size)
        except ValueError as error:
            raise OSError(f"the memory cannot be mapped: {error}") from error
        self.gradients_offset = offer.gradients_offset
        self._runs = _runs(blocks)
        self._step: int | None = None
        self._gradients: Array = _floats(memory, elements, offer.gradients_offset)
        self._parameters: Array = _floats(memory, elements if offer.parameters_offset else 0, offer.parameters_offset)

    def free_for(self, step: int) -> bool:
        """Whether gradients for a step may be written: the shard needs those of no other step any more."""
        if self._step is not None and self._step != step:
            return False
        self._step = step
        return True

    def free(self) -> None:
        """The shard needs what was written no more."""
        self._step = None

    def pulled(self, version: int) -> None:
        """A version, or a clock, was read: the shard needs no gradients of steps before it."""
        if self._step is not None and version > self._step:
            self._step = None

    def write(self, flat: Array) -> None:
        """Put the gradients of a flat vector where the shard finds them."""
        for here, there in self._runs:
            self._gradients[here] = flat[there]

    def read(self, flat: Array) -> None:
        """Put the parameters that the shard has left into a flat vector."""
        for here, there in self._runs:
            flat[there] = self._parameters[here]


class SharedVersion:
    """One array of a shard in which versions of its parameters come to lie.

    Args:
        offer: what the shard says of it.
        blocks: of the shard, in order of index.

    Raises:
        OSError: as `opened`.
    """

    def __init__(self, offer: pb.SharedMemory, blocks: Sequence[Block]) -> None:
        self.descriptor = opened(offer.path, offer.nonce, offer.size, written=False)
        weakref.finalize(self, os.close, self.descriptor)
        self.offset = offer.offset
        memory = mmap.mmap(self.descriptor, offer.size, access=mmap.ACCESS_READ)
        self._runs = _runs(blocks)
        self._parameters = _floats(memory, sum(block.elements for block in blocks), offer.offset)

    def read(self, flat: Array) -> None:
        """Put the parameters into a flat vector."""
        for here, there in self._runs:
            flat[there] = self._parameters[here]


class Segments:
    """What one worker shares with each shard. Safe for threads.

    Args:
        shards: how many there are; 0 = nothing is shared.
    """

    def __init__(self, shards: int) -> None:
        self._locks = [threading.Lock() for _ in range(shards)]
        self._held: dict[int, tuple[tuple[int, int], SharedSegment]] = {}
        self._refused: set[int] = set()

    def of(
        self, shard: int, who: tuple[int, int], attach: Callable[[], pb.AttachResponse], blocks: Sequence[Block]
    ) -> SharedSegment | None:
        """What `who`, a worker and its attempt, shares with a shard; asked for by `attach`, once.

        Raises:
            TidemillError: the shard cannot be asked.
        """
        if shard >= len(self._locks) or shard in self._refused:
            return None
        with self._locks[shard]:
            held = self._held.get(shard)
            if held is not None and held[0] == who:
                return held[1]
            try:
                segment = SharedSegment(attach(), blocks)
            except (errors.Exhausted, errors.Unimplemented, OSError):
                self._refused.add(shard)
                return None
            except errors.FailedPrecondition as error:
                if error.reason != "NO_SHARED_MEMORY":
                    raise
                self._refused.add(shard)
                return None
            self._held[shard] = who, segment
            return segment

    @property
    def some(self) -> bool:
        """Whether anything may be shared."""
        return len(self._refused) < len(self._locks)

    def held(self, shard: int, who: tuple[int, int]) -> SharedSegment | None:
        """What `who` shares with a shard now."""
        known = self._held.get(shard)
        return known[1] if known is not None and known[0] == who else None

    def refuse(self, shard: int) -> None:
        """Share nothing with a shard any more."""
        self._refused.add(shard)

    def close(self) -> None:
        """Let go of all memory, and share none any more."""
        self._locks = []
        self._held.clear()

    @contextmanager
    def checked(self, shard: int) -> Iterator[None]:
        """Around a call that uses what is shared: a shard that has begun anew knows nothing of it, and is asked again.

        Raises:
            Unavailable: then the call is to be repeated.
        """
        try:
            yield
        except errors.FailedPrecondition as error:
            if error.reason != "NOT_ATTACHED":
                raise
            self._held.pop(shard, None)
            raise errors.Unavailable(error.message, reason="NOT_ATTACHED") from error


def pieces(descriptor: int, offset: int, blocks: Sequence[Block]) -> list[Piece]:
    """Where the blocks of a shard lie in memory of it that begins at an offset, and in the flat vector."""
    found, position = [], 0
    for block in blocks:
        found.append(Piece(descriptor, offset + FLOAT.itemsize * position, block.offset, block.elements))
        position += block.elements
    return found


def _floats(memory: mmap.mmap, elements: int, offset: int) -> Array:
    return np.frombuffer(memory, FLOAT, elements, offset) if elements else np.empty(0, FLOAT)


def _runs(blocks: Sequence[Block]) -> list[tuple[Any, Any]]:
    """Where blocks lie in the shard's own array and in the flat vector; neighbours together."""
    runs: list[tuple[slice, slice]] = []
    position = 0
    for block in blocks:
        here, there = slice(position, position + block.elements), block.slice
        if runs and runs[-1][1].stop == there.start:
            before = runs.pop()
            here, there = slice(before[0].start, here.stop), slice(before[1].start, there.stop)
        runs.append((here, there))
        position += block.elements
    return runs
