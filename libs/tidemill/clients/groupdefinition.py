"""What a group of parameters is made of, wherever it is placed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The state of one group fits only into another one like it.

    Args:
        tensors: name and shape of each tensor, in order.
        workers: number of workers.
        rule: how pushes become parameters, as in the message of a group: optimizer, schedule, consistency and the like.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    workers: int
    rule: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "tensors": [[name, list(shape)] for name, shape in self.tensors],
            "workers": self.workers,
            "rule": json.loads(json.dumps(self.rule)),
        }
