"""What a worker has computed and not sent yet."""

import logging
import mmap
import os
from pathlib import Path

import numpy as np

from tidemill.codecs.base import FLOAT, finite
from tidemill.errors import DataLoss
from tidemill.tensors.blocks import Array, Block

LOG = logging.getLogger(__name__)

_MAGIC = 0x4C52_454D_4454_0001
_HEAD = mmap.PAGESIZE
_NONE = -1


class Residuals:
    """The residual of every block of the flat vector, zeros at first; the memory is taken when it is first used.

    It belongs to one worker and to its checkpoint: without it the gradients in it are lost. It is kept flat, so it may
    be restored where the vector is cut into other blocks. Threads may work on different blocks at once, but all but
    `of` and `next` belong between the steps.

    There are two of them: that before a step, and that after it, which is made block by block. So a step can be taken
    back, and with a file a worker that is killed at any time leaves what its successor needs, whether the shards have
    that step by then or not. The file is memory that outlives the process: it is not brought to the disk, and after a
    crash of the machine it may hold anything that was once in it.

    Args:
        elements: length of the flat vector.
        file: where to keep them; of another length or kind it is begun anew. Where there is no room for it they are
            kept in memory, and lost with the process.
    """

    def __init__(self, elements: int, file: Path | None = None) -> None:
        memory = None if file is None else _opened(file, elements)
        self._is_kept = memory is not None
        if memory is None:
            self._steps = np.array([_NONE, _NONE], np.int64)
            self._both: Array = np.zeros((2, elements), FLOAT)
        else:
            self._steps = np.frombuffer(memory, np.int64, 2, 16)
            self._both = np.frombuffer(memory, FLOAT, 2 * elements, _HEAD).reshape(2, elements)
        self._now = int(np.argmax(self._steps))

    @property
    def is_kept(self) -> bool:
        """Whether they are in a file."""
        return self._is_kept

    def of(self, block: Block) -> Array:
        """The residual of a block before the step: a view."""
        here: Array = self._both[self._now][block.slice]
        return here

    def begin(self) -> None:
        """Begin a step: what follows the latest one, or was begun, is not needed any more."""
        self._steps[1 - self._now] = _NONE

    def next(self, block: Block) -> Array:
        """For the step that was begun the residual of a block: a view, to be given to `Codec.encode` once."""
        after: Array = self._both[1 - self._now][block.slice]
        np.copyto(after, self.of(block))
        return after

    def finish(self, step: int) -> None:
        """All blocks of a step are encoded: what is left belongs before the next one.

        Args:
            step: its number.
        """
        self._now = 1 - self._now
        self._steps[self._now] = step + 1

    def undo(self) -> None:
        """Take back the step that was finished last."""
        self._steps[self._now] = _NONE
        self._now = 1 - self._now

    def resume(self, step: int) -> bool:
        """Go on before a step with what was left then, or with zeros; whether nothing is lost so."""
        found = np.where(self._steps <= step, self._steps, _NONE)
        if found.max() == _NONE:
            self.drop()
            self._steps[self._now] = step
            return step == 0
        self._now = int(np.argmax(found))
        return True

    def save(self) -> Array:
        """A copy, to be stored with the worker's checkpoint."""
        here: Array = self._both[self._now]
        return here.copy()

    def restore(self, flat: Array) -> None:
        """Go on with what `save` gave.

        Raises:
            DataLoss: with reason BAD_CHECKPOINT, it is of another size or type, or holds NaN or infinity.
        """
        here = self._both[self._now]
        if flat.dtype != FLOAT or flat.shape != here.shape or not finite(np.ascontiguousarray(flat)):
            raise DataLoss(
                f"the residual must be {here.size} finite float32, not {list(flat.shape)} {flat.dtype}",
                reason="BAD_CHECKPOINT",
            )
        np.copyto(here, flat)

    def drop(self) -> None:
        """Begin anew: what was not sent belongs to parameters long gone."""
        self._steps[:] = _NONE
        self._now = 0
        self._both[0] = 0


def _opened(file: Path, elements: int) -> mmap.mmap | None:
    """The memory of a file; None when there is no room for it."""
    size = _HEAD + 2 * elements * FLOAT.itemsize
    head = np.array([_MAGIC, elements, _NONE, _NONE], np.int64)
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size != size or os.pread(fd, 16, 0) != head[:2].tobytes():
                os.ftruncate(fd, 0)
                os.posix_fallocate(fd, 0, size)  # else a full disk would be a signal, later
                os.pwrite(fd, head.tobytes(), 0)
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        LOG.warning("what is not sent is kept in memory alone: %s", error.strerror)
        return None
