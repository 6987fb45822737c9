"""A job as it runs: a line for each state and epoch, and in a terminal a live bar below them."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn
from rich.text import Text

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli.output import counted

_BEFORE = (pb.Job.STATE_PENDING, pb.Job.STATE_STARTING, pb.Job.STATE_RUNNING)
_MARGIN = 4
"""Room for the `^C` that a terminal writes behind the bar: a line that broke there could not be taken away again."""
_SAID = {
    pb.Job.STATE_PAUSING: "is being paused",
    pb.Job.STATE_PAUSED: "is paused",
    pb.Job.STATE_CANCELLING: "is being cancelled",
    pb.Job.STATE_SUCCEEDED: "has succeeded",
    pb.Job.STATE_FAILED: "has failed",
    pb.Job.STATE_CANCELLED: "was cancelled",
}


def state_name(job: pb.Job) -> str:
    """`running` for STATE_RUNNING."""
    return pb.Job.State.Name(job.state).removeprefix("STATE_").lower()


def epoch_line(epoch: pb.Epoch) -> str:
    """One epoch in one line of less than 80 characters."""
    quality = epoch.validation
    return (
        f"epoch {epoch.epoch:>3}  train loss {epoch.train_loss:.4f}  val loss {quality.loss:.4f}  "
        f"accuracy {quality.accuracy:7.2%}  {epoch.seconds:.1f} s{'  best' if epoch.best else ''}"
    )


class News:
    """What there is to say after each change of a job, every thing once."""

    def __init__(self) -> None:
        self._state = pb.Job.STATE_UNSPECIFIED
        self._waiting = ""
        self._epochs = 0
        self._restarts = 0

    def lines(self, job: pb.Job) -> Iterator[str]:
        """Lines about what has happened since the last call."""
        epochs = [epoch_line(epoch) for epoch in job.epochs[self._epochs :]]
        states = []
        if job.state != self._state:
            states.append(f"{job.name} {_SAID.get(job.state) or f'is {state_name(job)}'}")
        if job.waiting and job.waiting != self._waiting:
            states.append(f"{job.name} {job.waiting}")
        if job.restarts > self._restarts:
            states.append(f"{job.name}: a dead worker was replaced, {job.restarts} so far")
        # Changes that come fast are folded together: epochs come after the start and before the end.
        yield from (states + epochs if job.state in _BEFORE else epochs + states)
        self._state, self._waiting = job.state, job.waiting
        self._epochs, self._restarts = len(job.epochs), job.restarts


async def follow(jobs: AsyncIterator[pb.Job]) -> pb.Job:
    """Show a job until its last state, which is returned. Without a terminal: lines only, no bar."""
    terminal = Console(highlight=False, markup=False, emoji=False)
    news, last = News(), pb.Job()
    if not terminal.is_terminal:
        async for last in jobs:
            for line in news.lines(last):
                print(line, flush=True)
        return last
    columns = (BarColumn(bar_width=None), TaskProgressColumn(), _Elapsed())
    bar = Progress(*columns, console=terminal, expand=True)
    task = bar.add_task("", total=None)
    with Live(
        console=terminal,
        transient=True,
        get_renderable=lambda: Group(_headline(last), Constrain(bar, terminal.width - _MARGIN)),
    ):
        async for last in jobs:
            for line in news.lines(last):
                terminal.print(line)
            steps = last.progress.epochs * last.progress.steps_per_epoch
            moving = last.state == pb.Job.STATE_RUNNING and last.progress.step > 0
            bar.update(task, total=steps if moving else None, completed=last.progress.step)
    return last


class _Elapsed(ProgressColumn):
    """Time since the start, also while the result is being exported, when all steps are done."""

    def render(self, task: Task) -> Text:
        """As `0:01:23`."""
        return Text(str(timedelta(seconds=int(task.elapsed or 0))), style="progress.elapsed")


def _headline(job: pb.Job) -> Text:
    return Text(headline(job), no_wrap=True, overflow="ellipsis")


def headline(job: pb.Job) -> str:
    """What a job does right now, and its latest numbers."""
    parts, progress = [state_name(job) if job.state else "connecting"], job.progress
    if job.waiting:
        parts.append(job.waiting)
    if job.state == pb.Job.STATE_STARTING:
        phases = Counter(worker.phase for worker in job.workers if worker.phase)
        parts += [f"{counted(count, 'worker')} {phase}" for phase, count in sorted(phases.items())]
    elif job.state == pb.Job.STATE_FINISHING:
        parts += [worker.phase for worker in job.workers if worker.rank == 0 and worker.phase]
    if progress.step:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
        parts.append(f"loss {progress.loss:.4f}")
    if job.epochs:
        parts.append(f"accuracy {job.epochs[-1].validation.accuracy:.2%}")
    if progress.samples_per_second and job.state == pb.Job.STATE_RUNNING:
        parts.append(f"{progress.samples_per_second:.0f} samples/s")
    return "  ".join(parts)
