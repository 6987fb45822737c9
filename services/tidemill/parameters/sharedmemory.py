"""Memory that a shard and workers on the same host share.

It is a sealed `memfd` of ours: nobody can shrink it, which would kill who has it mapped, nothing of it is left when the
shard dies, and a worker opens it by its path under `/proc` with the rights of its user alone.
"""

import errno
import fcntl
import mmap
import os
import secrets
import weakref

import numpy as np

from tidemill.errors import Exhausted, FailedPrecondition
from tidemill.tensors.blocks import Array

PAGE = mmap.PAGESIZE
NONCE = 32
"""Bytes at the beginning by which a worker knows that it has opened the right memory."""
FLOAT = np.dtype("<f4")
F_SEAL_FUTURE_WRITE = 0x10
"""Of Linux 5.1; Python does not know it yet."""


class Memory:
    """Pages that begin with a nonce, of this process; others on the host may open them.

    Args:
        size: bytes beyond the first page.
        written: whether others may write.

    Raises:
        Exhausted: there is no memory for it.
        FailedPrecondition: reason NO_SHARED_MEMORY, this system has no such thing.
    """

    def __init__(self, size: int, *, written: bool) -> None:
        if not hasattr(os, "memfd_create"):
            raise FailedPrecondition("this system shares no memory in this way", reason="NO_SHARED_MEMORY")
        self.nonce = secrets.token_bytes(NONCE)
        self.size = PAGE + size
        descriptor = os.memfd_create("tidemill", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size)
            self.map = mmap.mmap(descriptor, self.size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            # What is mapped already stays writable: here alone.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | (0 if written else F_SEAL_FUTURE_WRITE))
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EINVAL:
                raise FailedPrecondition("this system seals no memory", reason="NO_SHARED_MEMORY") from error
            raise Exhausted(f"no shared memory: {error.strerror}", reason="NO_MEMORY", retry_after=10) from error
        self._descriptor = descriptor
        self.map[:NONCE] = self.nonce

    def array(self, elements: int, offset: int = PAGE) -> Array:
        """So many float32 that lie there."""
        if not elements:
            return np.empty(0, FLOAT)
        return np.frombuffer(self.map, FLOAT, elements, offset)

    @property
    def path(self) -> str:
        """Where a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let nobody else open it; the memory goes with the last array and the last process that has it mapped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Segment:
    """One worker's share: its gradients, which it writes, and without rounds the parameters, written for it alone.

    Args:
        elements: of the part.
        parameters: whether there are parameters.

    Raises:
        Exhausted, FailedPrecondition: as `Memory`.
    """

    def __init__(self, elements: int, *, parameters: bool) -> None:
        area = pages(elements)
        self._memory = Memory((1 + parameters) * area, written=True)
        self.nonce, self.size = self._memory.nonce, self._memory.size
        self.gradients_offset = PAGE
        self.parameters_offset = PAGE + area if parameters else 0
        self.gradients = self._memory.array(elements)
        self.parameters = self._memory.array(elements, PAGE + area) if parameters else np.empty(0, FLOAT)

    @property
    def path(self) -> str:
        """Where a process of the same user opens it."""
        return self._memory.path

    def close(self) -> None:
        """Let nobody else open it."""
        self._memory.close()


class Arrays:
    """Makes arrays for versions of the parameters; from some moment on in memory that workers may read.

    Args:
        elements: of each.
    """

    def __init__(self, elements: int) -> None:
        self._elements = elements
        self._memories: dict[int, Memory] = {}
        self.shared = False

    def new(self) -> Array:
        """One more. Raises as `Memory`."""
        if not self.shared:
            return np.empty(self._elements, FLOAT)
        memory = Memory(pages(self._elements), written=False)
        array = memory.array(self._elements)
        key = id(array)
        self._memories[key] = memory
        weakref.finalize(array, _forget, self._memories, key)
        return array

    def memory(self, array: Array) -> Memory | None:
        """Where an array of these lies; None = in memory of this process alone."""
        return self._memories.get(id(array))


def _forget(memories: dict[int, Memory], key: int) -> None:
    memories.pop(key).close()


def pages(elements: int) -> int:
    """Bytes of whole pages for so many float32."""
    return -(-FLOAT.itemsize * elements // PAGE) * PAGE
