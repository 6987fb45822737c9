"""The learning curve of a job as a picture."""

from pathlib import Path

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.errors import FailedPrecondition

_DOTS = 50


def plot(job: pb.Job, path: Path) -> None:
    """Write loss and accuracy over the epochs of `job` to `path`, as the suffix says: `.png`, `.svg` or `.pdf`.

    Raises:
        FailedPrecondition: no epoch has ended yet.
        OSError: it cannot be written.
    """
    if not job.epochs:
        raise FailedPrecondition(f"{job.name} has no finished epoch to plot", reason="NO_EPOCHS")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import: only when a plot is asked for
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch.epoch for epoch in job.epochs]
    dot = "o" if len(epochs) <= _DOTS else ""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    loss.plot(epochs, [e.train_loss for e in job.epochs], marker=dot, label="training")
    loss.plot(epochs, [e.validation.loss for e in job.epochs], marker=dot, label="validation")
    loss.set_ylabel("loss")
    loss.legend()
    accuracy.plot(epochs, [e.validation.accuracy for e in job.epochs], marker=dot, color="C1", label="accuracy")
    accuracy.plot(epochs, [e.validation.f1 for e in job.epochs], marker=dot and ".", color="C2", label="macro F1")
    best = [e.epoch for e in job.epochs if e.best]
    if best:
        for axes in (loss, accuracy):
            axes.axvline(best[-1], color="0.7", linestyle="--", zorder=0)
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_xlabel("epoch (dashed: the best)")
    accuracy.set_ylabel("validation")
    accuracy.legend()
    figure.suptitle(f"{job.name}: {job.spec.model.name}")
    figure.savefig(path, dpi=110)
