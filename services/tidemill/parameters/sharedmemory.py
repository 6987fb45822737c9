"""Memory that a shard and one worker on the same host share.

It is a sealed `memfd` of ours: nobody can shrink it, which would kill who has it mapped, nothing of it is left when the
shard dies, and a worker opens it by its path under `/proc` with the rights of its user alone.
"""

import fcntl
import mmap
import os
import secrets

import numpy as np

from tidemill.errors import Exhausted, FailedPrecondition
from tidemill.tensors.blocks import Array

PAGE = mmap.PAGESIZE
NONCE = 32
"""Bytes at the beginning by which a worker knows that it has opened the right memory."""
FLOAT = np.dtype("<f4")


class Segment:
    """One worker's share: its gradients, which it writes, and the parameters, which the shard writes for it.

    Args:
        elements: of the part.

    Raises:
        Exhausted: there is no memory for it.
        FailedPrecondition: reason NO_SHARED_MEMORY, this system has no such thing.
    """

    def __init__(self, elements: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise FailedPrecondition("this system shares no memory in this way", reason="NO_SHARED_MEMORY")
        area = -(-4 * elements // PAGE) * PAGE
        self.nonce = secrets.token_bytes(NONCE)
        self.gradients_offset = PAGE
        self.parameters_offset = PAGE + area
        self.size = PAGE + 2 * area
        descriptor = os.memfd_create("tidemill", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, self.size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            memory = mmap.mmap(descriptor, self.size)
        except OSError as error:
            os.close(descriptor)
            raise Exhausted(f"no shared memory: {error.strerror}", reason="NO_MEMORY", retry_after=10) from error
        self._descriptor = descriptor
        memory[:NONCE] = self.nonce
        self.gradients: Array = np.frombuffer(memory, FLOAT, elements, self.gradients_offset)
        self.parameters: Array = np.frombuffer(memory, FLOAT, elements, self.parameters_offset)

    @property
    def path(self) -> str:
        """Where a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let nobody else open it; the memory goes with the last array and the last process that has it mapped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
