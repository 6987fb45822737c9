"""The oldest strategy: requests of different sequences are put together; the oldest sequences are the candidates."""

from collections.abc import Mapping

from tidemill.inference.calls import Array
from tidemill.inference.configuration import DynamicBatching
from tidemill.inference.scheduling.sequence_queue import Batch, Instance, alike, fits

PLACES = 1024
"""Sequences of an instance at a time, where the model's owner names no number."""


class OldestStrategy:
    """Fills batches from the candidates that are ready; those that have been so for longest come first.

    Args:
        batching: how requests are put together; with `preserve_order` none overtakes another one that was ready
            before it, while otherwise one whose shapes do not fit waits for a batch of its own.
        candidates: most sequences of an instance at a time; 0 = `PLACES`.
        rows: the model's largest batch; 0 = it takes no batches.
        initial: the implicit state of a sequence that begins.
    """

    def __init__(self, batching: DynamicBatching, candidates: int, rows: int, initial: Mapping[str, Array]) -> None:
        self.places = candidates or PLACES
        self._batched = rows > 0
        self._rows = max(1, rows)
        self._batching = batching
        self._initial = initial

    def pick(self, instance: Instance, now: float) -> Batch | float:
        """The next batch, or when to look again though nothing has happened; some sequence is ready."""
        ready = list(instance.ready)
        if not self._batched:
            return Batch(ready[:1], "")
        select = fits if self._batching.preserve_order else alike
        chosen = select(ready, self._initial)
        batching = self._batching
        preferred = [size for size in batching.preferred if size <= len(chosen)]
        due = ready[0].since + batching.delay
        if len(chosen) >= self._rows:
            return Batch(chosen[: self._rows], "full")
        if preferred:
            return Batch(chosen[: max(preferred)], "preferred")
        if now < due:
            return due
        return Batch(chosen, "delay" if batching.delay else "idle")
