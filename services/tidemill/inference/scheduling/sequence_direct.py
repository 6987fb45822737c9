"""The direct strategy: every sequence has a row of its instance's batch for itself."""

from collections.abc import Mapping, Sequence

import numpy as np

from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Answer, Array, Call
from tidemill.inference.configuration import SequenceBatching
from tidemill.inference.scheduling.sequence_controls import Controls
from tidemill.inference.scheduling.sequence_queue import Batch, Instance, SequenceQueue, alike


class DirectStrategy:
    """Runs all slots that are ready at once, each sequence always in the same row.

    Args:
        sequence: how the model is configured.
        rows: slots of an instance: the model's largest batch; 0 = it takes no batches, and has one slot.
        controls: fills the control inputs of rows without a request.
        initial: the implicit state of a sequence that begins.
    """

    def __init__(self, sequence: SequenceBatching, rows: int, controls: Controls, initial: Mapping[str, Array]) -> None:
        self.places = max(1, rows)
        self._batched = rows > 0
        self._delay = sequence.delay if sequence.utilization else 0.0
        self._enough = sequence.utilization * self.places
        self._controls = controls
        self._initial = initial

    def pick(self, instance: Instance, now: float) -> Batch | float:
        """The next batch, or when to look again though nothing has happened; some sequence is ready."""
        ready = sorted(instance.ready, key=lambda sequence: sequence.since)
        chosen = alike(ready, self._initial)
        due = ready[0].since + self._delay
        if len(chosen) < self.places and len(chosen) < self._enough and now < due:
            return due
        if not self._batched:
            return Batch(chosen, "")
        if len(chosen) == self.places:
            closed = "full"
        elif not self._delay:
            closed = "idle"
        else:
            closed = "preferred" if len(chosen) >= self._enough else "delay"
        return Batch(chosen, closed, Slots(instance.sequences, chosen, self._controls))


class Slots:
    """A batch that has one row for each slot up to the last one with a request; see `Arrangement`.

    Rows without a request are zeros, and their control inputs say that nothing is there.

    Args:
        slots: the sequences of the instance, by slot.
        chosen: those with a request.
        controls: fills the control inputs of the other rows.
    """

    def __init__(
        self, slots: Sequence[SequenceQueue | None], chosen: Sequence[SequenceQueue], controls: Controls
    ) -> None:
        self._rows = {sequence.correlation: sequence.place for sequence in chosen}
        self._kept = [0 if sequence is None else sequence.correlation for sequence in slots]
        self._controls = controls

    def merge(self, calls: Sequence[Call]) -> Mapping[str, Array]:
        """The inputs of all rows."""
        rows = [self._rows[call.correlation] for call in calls]
        count = max(rows) + 1
        merged = {}
        for name, sample in calls[0].inputs.items():
            blank: object = b"" if sample.dtype == object else 0
            merged[name] = np.full((count, *sample.shape[1:]), blank, sample.dtype)
            for row, call in zip(rows, calls, strict=True):
                merged[name][row] = call.inputs[name][0]
        for row in set(range(count)).difference(rows):
            for name, array in self._controls.blank(self._kept[row]).items():
                merged[name][row] = array[0]
        return merged

    def split(self, calls: Sequence[Call], found: Mapping[str, Array]) -> list[Answer]:
        """Each call's own row.

        Raises:
            Internal: the model gave another number of rows than it got.
        """
        rows = [self._rows[call.correlation] for call in calls]
        count = max(rows) + 1
        for name, array in found.items():
            if array.ndim == 0 or len(array) != count:
                cause = Invalid(f"output {name!r} has shape {array.shape} for a batch of {count}")
                raise Internal("the model failed on these inputs", reason="EXECUTION_FAILED") from cause
        return [
            Answer(outputs={name: found[name][row : row + 1] for name in call.outputs})
            for row, call in zip(rows, calls, strict=True)
        ]
