"""What epochs achieved, which of them is the best, and when there is no use in another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tidemill.errors import OutOfRange, invalid
from tidemill.training.spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Quality on one split of the samples."""

    loss: float = 0.0
    accuracy: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    samples: int = 0

    def values(self) -> dict[str, float]:
        """The measures by name, without the number of samples."""
        return {name: getattr(self, name) for name in ("loss", "accuracy", "precision", "recall", "f1")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch achieved; `best` says whether no epoch up to it was better."""

    epoch: int
    train_loss: float = 0.0
    validation: Metrics = field(default_factory=Metrics)
    samples: int = 0
    seconds: float = 0.0
    checkpoint: str = ""
    best: bool = False
    reported: float = 0.0
    """When it was reported, seconds since the epoch; 0 = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job brought forth."""

    artifact: str = ""
    model_version: str = ""
    best_epoch: int = 0
    test: Metrics = field(default_factory=Metrics)
    parity: float = 0.0
    dataset_digest: str = ""
    logs: str = ""
    signature: str = ""
    test_samples: str = ""


def best(epochs: Sequence[Epoch]) -> Epoch | None:
    """The best of all epochs, which is the last one marked so."""
    return next((epoch for epoch in reversed(epochs) if epoch.best), None)


def append(epochs: Sequence[Epoch], epoch: Epoch, spec: JobSpec) -> tuple[Epoch, ...]:
    """`epochs` and the next one, marked as best when its validation loss improves on the best by more than `min_delta`.

    Raises:
        Invalid: a measure is not finite.
        OutOfRange: reason EPOCH_OUT_OF_ORDER, when it is not the next one, or beyond the last.
    """
    if epoch.epoch != len(epochs) + 1 or epoch.epoch > spec.epochs:
        raise OutOfRange(
            f"epoch {epoch.epoch} does not follow epoch {len(epochs)} of {spec.epochs}", reason="EPOCH_OUT_OF_ORDER"
        )
    for name, value in {"train_loss": epoch.train_loss, **epoch.validation.values()}.items():
        if not math.isfinite(value):
            raise invalid(f"epoch.{name}", "must be finite")
    before = best(epochs)
    improved = before is None or epoch.validation.loss < before.validation.loss - spec.early_stopping.min_delta
    return (*epochs, replace(epoch, best=improved))


def over(epochs: Sequence[Epoch], spec: JobSpec) -> bool:
    """Whether training ends after these epochs: it was the last one, or `patience` epochs brought no improvement."""
    if len(epochs) >= spec.epochs:
        return True
    found = best(epochs)
    patience = spec.early_stopping.patience
    return found is not None and patience > 0 and len(epochs) - found.epoch >= patience
