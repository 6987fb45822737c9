"""What is carried up and down the ladder."""

from dataclasses import dataclass

import numpy as np

from tidemill.rpc.options import CHUNK
from tidemill.tensors.blocks import Array


@dataclass(frozen=True, slots=True)
class Payload:
    """Gradients one way, as many parameters the other way."""

    text: str
    tensors: int
    elements: int
    """Of each tensor, float32."""
    repeats: int
    """Exchanges of a rung in one round."""

    @property
    def total(self) -> int:
        """Elements of all tensors."""
        return self.tensors * self.elements

    @property
    def bytes(self) -> int:
        """One way."""
        return 4 * self.total

    @property
    def pieces(self) -> list[slice]:
        """Runs of elements that travel in a message or call: a tensor, and not more than 1 MiB."""
        most = CHUNK // 4
        starts = [
            (tensor * self.elements + offset, min(most, self.elements - offset))
            for tensor in range(self.tensors)
            for offset in range(0, self.elements, most)
        ]
        return [slice(start, start + length) for start, length in starts]

    def gradients(self) -> Array:
        """Some, always the same."""
        return np.random.default_rng(7).standard_normal(self.total, np.float32)


PAYLOADS = {
    "100MB": Payload("100 MB", 1, 25_000_000, 5),
    "1MB": Payload("1 MB", 1, 250_000, 50),
    "many": Payload("200 x 16 KiB", 200, 4096, 30),
    "bucket": Payload("one of their size", 1, 200 * 4096, 30),
}
"""By the name that `--payloads` takes."""
