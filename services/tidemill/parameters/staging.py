"""Where a stream of blocks is gathered, to be taken whole or not at all."""

from collections.abc import Callable, Mapping

import numpy as np

from tidemill.codecs.base import Codec
from tidemill.errors import Invalid, Stale, TidemillError
from tidemill.parameters.part import Part
from tidemill.parameters.pool import Pool
from tidemill.parameters.rows import Rows
from tidemill.tensors.blocks import Array

FLOAT = np.dtype("<f4")
ROW = np.dtype("<u4")


class Staging:
    """Gathers every block of a part exactly once, each whole and finite.

    Nothing is allocated before the first block has arrived. Used by one thread; `drop` may come from any.

    Args:
        part: the blocks that must come.
        subject: what errors name: whose stream it is.
        codec: how blocks are encoded; None = they are not.
        pool: where memory comes from; None = it is new.
    """

    def __init__(
        self, part: Part, subject: Mapping[str, str], codec: Codec | None = None, pool: Pool | None = None
    ) -> None:
        self._pool = pool
        self._part = part
        self._codec = codec
        self._subject = dict(subject)
        self._values: Array | None = None
        self._missing = {block.index for block in part.dense.blocks}
        self.rows: dict[int, Rows] = {}
        """What has come of tables, by index of the block."""
        self._dropped: Callable[[], TidemillError] | None = None
        self._received = 0

    def fill(self, values: Array) -> None:
        """Take all blocks at once, where they lie: they belong to this object from now on.

        Raises:
            Invalid: NON_FINITE.
            TidemillError: the one that this was dropped with.
        """
        for block in self._part.blocks:
            if self._dropped is not None:
                raise self._dropped()
            if not np.isfinite(self._part.view(values, block.index)).all():
                raise self._invalid(block.index, "holds NaN or infinity", "NON_FINITE")
        self._values, self._received = values, values.nbytes
        self._missing.clear()

    @property
    def received(self) -> int:
        """Bytes that have come so far."""
        return self._received

    def add_rows(self, index: int, rows: bytes, data: bytes | memoryview) -> None:
        """Take the touched rows of the block `index`, which is of a table.

        Raises:
            Invalid: UNKNOWN_BLOCK, REPEATED_BLOCK, SIZE_MISMATCH, NON_FINITE or BAD_ROWS.
            TidemillError: the one that this was dropped with.
        """
        width = self._part.widths.get(index)
        if width is None:
            raise self._invalid(index, "is not of a table on this shard", "UNKNOWN_BLOCK")
        if index in self.rows:
            raise self._invalid(index, "came twice", "REPEATED_BLOCK")
        if self._dropped is not None:
            raise self._dropped()
        if len(rows) % ROW.itemsize or len(data) != len(rows) // ROW.itemsize * width * FLOAT.itemsize:
            raise self._invalid(index, f"has {len(rows)} bytes of rows with {len(data)} of data", "SIZE_MISMATCH")
        gradients = np.frombuffer(data, FLOAT).reshape(-1, width).copy()  # steps overwrite it
        if not np.isfinite(gradients).all():
            raise self._invalid(index, "holds NaN or infinity", "NON_FINITE")
        try:
            touched = Rows(np.frombuffer(rows, ROW).astype(np.int64), gradients)
            touched.check(self._part.elements_of(index))
        except Invalid as error:
            raise self._invalid(index, error.message, "BAD_ROWS") from error
        self.rows[index] = touched
        self._received += len(data)

    def add(self, index: int, data: bytes | memoryview) -> None:
        """Take the block `index`, as it is encoded.

        Raises:
            Invalid: UNKNOWN_BLOCK, REPEATED_BLOCK, SIZE_MISMATCH, NON_FINITE or BAD_ENCODING.
            TidemillError: the one that this was dropped with.
        """
        if index not in self._part.dense:
            raise self._invalid(index, "is not on this shard", "UNKNOWN_BLOCK")
        if index not in self._missing:
            raise self._invalid(index, "came twice", "REPEATED_BLOCK")
        if self._values is None:
            elements = self._part.dense.elements
            self._values = np.empty(elements, FLOAT) if self._pool is None else self._pool.take()
        values = self._values
        if self._dropped is not None:
            raise self._dropped()
        target = self._part.dense.view(values, index)
        if self._codec is not None:
            try:
                self._codec.decode(bytes(data), target.size, target)
            except Invalid as error:
                raise self._invalid(index, error.violations.get("data", error.message), error.reason) from error
        else:
            self._take(index, data, target)
        self._received += len(data)
        self._missing.discard(index)

    def _take(self, index: int, data: bytes | memoryview, target: Array) -> None:
        if len(data) != target.nbytes:
            raise self._invalid(index, f"needs {target.nbytes} bytes, not {len(data)}", "SIZE_MISMATCH")
        # Looked at where it is aligned and still in the cache; a push that is refused leaves this behind whole.
        np.copyto(target, np.frombuffer(data, FLOAT))
        if not np.isfinite(target).all():
            raise self._invalid(index, "holds NaN or infinity", "NON_FINITE")

    def whole(self, *, optional: bool = False) -> Array:
        """All blocks, one after the other in one array; an empty one when none has come and that is `optional`.

        Raises:
            Invalid: MISSING_BLOCKS, the stream ended early.
            TidemillError: the one that this was dropped with.
        """
        values = self._values
        if self._dropped is not None:
            raise self._dropped()
        if self._missing and not (optional and values is None):
            missing = min(self._missing)
            raise self._invalid(missing, f"did not come ({len(self._missing)} are missing)", "MISSING_BLOCKS")
        return np.empty(0, FLOAT) if values is None else values

    def drop(self, why: Callable[[], TidemillError]) -> None:
        """Free the memory; what comes later is refused with this error."""
        self._dropped = why
        self._values = None
        self.rows = {}

    def _invalid(self, index: int, problem: str, reason: str) -> Invalid:
        subject = {**self._subject, "block": str(index)}
        named = ", ".join(f"{key} {value}" for key, value in subject.items())
        return Invalid(f"{named}: {problem}", reason=reason, metadata=subject, violations={"block": problem})


def superseded() -> Stale:
    """What a stream is told whose place another one has taken."""
    return Stale("another stream of the same worker took this one's place", reason="SUPERSEDED")
