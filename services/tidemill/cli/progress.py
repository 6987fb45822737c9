"""A job as it runs: a bar with loss and accuracy, and a line for each epoch."""

from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tidemill.api.training.v1 import training_pb2 as pb


def state_name(job: pb.Job) -> str:
    """`running` for STATE_RUNNING."""
    return pb.Job.State.Name(job.state).removeprefix("STATE_").lower()


def epoch_line(epoch: pb.Epoch) -> str:
    """One epoch in one line."""
    quality = epoch.validation
    return (
        f"epoch {epoch.epoch:>3}  train loss {epoch.train_loss:.4f}  validation loss {quality.loss:.4f}  "
        f"accuracy {quality.accuracy:.2%}  F1 {quality.f1:.4f}  {epoch.seconds:.1f} s{'  best' if epoch.best else ''}"
    )


async def follow(jobs: AsyncIterator[pb.Job]) -> pb.Job:
    """Show the states of a job until its last, which is returned. Without a terminal: lines only, no bar."""
    terminal = Console(highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    last = pb.Job()
    shown, state, waiting = 0, "", ""
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar:
        task = bar.add_task("pending", total=None, numbers="")
        async for job in jobs:
            last = job
            if state_name(job) != state:
                state = state_name(job)
                terminal.print(f"{job.name} is {state}")
            if job.waiting and job.waiting != waiting:
                terminal.print(f"{job.name} {job.waiting}")
            waiting = job.waiting
            for epoch in job.epochs[shown:]:
                terminal.print(epoch_line(epoch))
            shown = len(job.epochs)
            total = job.progress.epochs * job.progress.steps_per_epoch
            bar.update(task, description=state, total=total or None, completed=job.progress.step, numbers=_numbers(job))
    return last


def _numbers(job: pb.Job) -> str:
    progress = job.progress
    text = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.4f}" if progress.epochs else ""
    if job.epochs:
        text += f"  accuracy {job.epochs[-1].validation.accuracy:.2%}"
    if progress.samples_per_second:
        text += f"  {progress.samples_per_second:.0f} samples/s"
    return text
