"""The gradients of one push, encoded."""

import threading
from collections.abc import Iterable, Sequence

from tidemill.codecs.base import Codec
from tidemill.compression.residuals import Residuals
from tidemill.tensors.blocks import Array, Block


class Encoded:
    """The blocks of one push as they travel: the same bytes however often they are sent.

    Args:
        values: all gradients; not changed while this is used.
        step: number of the push.
        codec: encodes them; None = they go as they are.
        residuals: what the codec has not sent before, if it keeps that.
        parts: for each shard its blocks.
    """

    def __init__(
        self,
        values: Array,
        step: int,
        codec: Codec | None,
        residuals: Residuals | None,
        parts: Sequence[Iterable[Block]],
    ) -> None:
        self._values = values
        self._step = step
        self._codec = codec
        self._residuals = residuals
        self._lock = threading.Lock()
        self._kept: dict[int, memoryview] = {}
        self._left = {block.index for part in parts for block in part}
        self._may_undo = False
        self._undone = False
        if residuals is not None:
            residuals.begin()

    def remember(self) -> None:
        """Until `forget` it may be undone."""
        with self._lock:
            self._may_undo = not self._kept

    def forget(self) -> None:
        """The push may have counted."""
        with self._lock:
            self._may_undo = False

    def undo(self) -> bool:
        """Let residuals be as they were before this push, if it cannot have counted; whether that is so."""
        with self._lock:
            if not self._may_undo:
                return False
            if self._residuals is not None and not self._left:
                self._residuals.undo()
            self._may_undo, self._undone = False, True
            return True

    def __call__(self, block: Block) -> memoryview:
        """The data of a block. Blocks may be asked for by several threads at the same time."""
        values, codec, residuals = self._values[block.slice], self._codec, self._residuals
        if codec is None:
            return values.data.cast("B")
        if residuals is None:
            return codec.encode(values)
        # What is encoded changes the residual: a repetition of the push must not encode it once more.
        with self._lock:
            if block.index not in self._kept:
                if self._undone:  # a call that was cancelled has asked late
                    return codec.encode(values, residuals.of(block).copy())
                residual = residuals.next(block) if self._left else residuals.of(block)
                self._kept[block.index] = codec.encode(values, residual)
                self._done(residuals, [block])
            return self._kept[block.index]

    def shared(self, part: Iterable[Block]) -> None:
        """These blocks go as they are, for now: what was not sent of them before stays."""
        residuals = self._residuals
        if residuals is None:
            return
        with self._lock:
            rest = [block for block in part if block.index in self._left and not self._undone]
            for block in rest:
                residuals.next(block)
            self._done(residuals, rest)

    def _done(self, residuals: Residuals, found: Iterable[Block]) -> None:
        if self._left:
            self._left.difference_update(block.index for block in found)
            if not self._left:
                residuals.finish(self._step)
