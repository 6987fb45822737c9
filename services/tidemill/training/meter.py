"""How far a job is, from the signs of life of all its workers."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tidemill.training.jobs import Progress, Worker

WINDOW = 10.0
"""Seconds over which the rate of samples is measured."""
_STRIDE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A worker's sign of life."""

    phase: str
    step: int = 0
    steps_per_epoch: int = 0
    loss: float = 0.0
    samples: int = 0
    """Used since this process started."""
    generation: int = 0
    """Meeting of the workers that it is in; 0 = none."""


class Meter:
    """Adds up what workers report.

    Args:
        epochs: most epochs.
        before: progress that workers have made so far.
        workers: those that may still be at work, whose samples are part of that.
        rounds: whether they make each step together; if not, the steps of the job are those of rank 0.
    """

    def __init__(self, epochs: int, before: Progress, workers: Iterable[Worker] = (), *, rounds: bool = True) -> None:
        self._epochs = epochs
        self._rounds = rounds
        self._before = before
        self._last = {
            worker.rank: (worker.attempt, Beat(phase=worker.phase, samples=worker.samples)) for worker in workers
        }
        self._ended = max(0, before.samples - sum(beat.samples for _, beat in self._last.values()))
        """Samples used by processes that are gone."""
        self._window: deque[tuple[float, int]] = deque()

    def beat(self, rank: int, attempt: int, beat: Beat, now: float) -> None:
        """Take a sign of life; `now` is monotonic time in seconds."""
        before = self._last.get(rank)
        if before is not None and before[0] != attempt:
            self._ended += before[1].samples
        self._last[rank] = (attempt, beat)
        if not self._window or now - self._window[-1][0] >= _STRIDE:
            self._window.append((now, self._samples()))
        while now - self._window[0][0] > WINDOW:
            self._window.popleft()

    def _samples(self) -> int:
        return self._ended + sum(beat.samples for _, beat in self._last.values())

    def progress(self) -> Progress:
        """How far the job is now."""
        beats = [beat for _, beat in self._last.values()]
        counted = beats if self._rounds else [beat for rank, (_, beat) in self._last.items() if rank == 0]
        step = max((self._before.step, *(beat.step for beat in counted)))
        per_epoch = max((self._before.steps_per_epoch, *(beat.steps_per_epoch for beat in beats)))
        losses = [beat.loss for beat in beats if beat.step > 0 and math.isfinite(beat.loss)]
        return Progress(
            epoch=min(step // per_epoch + 1, self._epochs) if per_epoch else self._before.epoch,
            epochs=self._epochs,
            step=step,
            steps_per_epoch=per_epoch,
            samples=self._samples(),
            loss=sum(losses) / len(losses) if losses else self._before.loss,
            samples_per_second=self._rate(),
        )

    def _rate(self) -> float:
        if len(self._window) < 2:
            return 0.0
        (since, before), (until, now) = self._window[0], self._window[-1]
        return (now - before) / (until - since)
