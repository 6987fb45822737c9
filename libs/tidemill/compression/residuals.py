"""What a worker has computed and not sent yet."""

import numpy as np

from tidemill.codecs.base import FLOAT, finite
from tidemill.errors import DataLoss
from tidemill.tensors.blocks import Array, Block


class Residuals:
    """The residual of every block of the flat vector, zeros at first; the memory is taken when it is first used.

    It belongs to one worker and to its checkpoint: without it the gradients in it are lost. It is kept flat, so it may
    be restored where the vector is cut into other blocks. Threads may work on different blocks at once, but `save`,
    `restore` and `drop` belong between the steps.

    Args:
        elements: length of the flat vector.
    """

    def __init__(self, elements: int) -> None:
        self._flat: Array = np.zeros(elements, FLOAT)

    def of(self, block: Block) -> Array:
        """The residual of a block: a view, to be given to `Codec.encode`."""
        return self._flat[block.slice]

    def save(self) -> Array:
        """A copy, to be stored with the worker's checkpoint."""
        return self._flat.copy()

    def restore(self, flat: Array) -> None:
        """Go on with what `save` gave.

        Raises:
            DataLoss: with reason BAD_CHECKPOINT, it is of another size or type, or holds NaN or infinity.
        """
        if flat.dtype != FLOAT or flat.shape != self._flat.shape or not finite(np.ascontiguousarray(flat)):
            raise DataLoss(
                f"the residual must be {self._flat.size} finite float32, not {list(flat.shape)} {flat.dtype}",
                reason="BAD_CHECKPOINT",
            )
        np.copyto(self._flat, flat)

    def drop(self) -> None:
        """Begin anew, as a worker must that joins again: what was not sent belongs to parameters long gone."""
        self._flat = np.zeros(self._flat.size, FLOAT)
