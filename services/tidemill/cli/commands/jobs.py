"""`tidemill jobs`: training jobs."""

import argparse
import asyncio
from pathlib import Path

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import connection, curve
from tidemill.cli.commands.base import Command
from tidemill.cli.output import console, print_fields, print_json, print_table, to_json, when
from tidemill.cli.progress import state_name
from tidemill.clients.training import TrainingClient


class Jobs(Command):
    """Lists, shows, cancels, deletes and plots jobs."""

    help = "list, show, cancel, delete or plot training jobs"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("action", nargs="?", default="list", choices=["list", "show", "cancel", "delete", "plot"])
        parser.add_argument("job", nargs="?", default="", help="identifier of the job")
        parser.add_argument("--output", type=Path, default="curve.png", help="file for `plot` (%(default)s)")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        return asyncio.run(_run(options))


def job_name(given: str) -> str:
    """`jobs/x` for `x` and for `jobs/x`."""
    return given if given.startswith("jobs/") else f"jobs/{given}"


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    name = job_name(options.job)
    async with TrainingClient(where.training) as client:
        if options.action == "list":
            jobs = [job async for job in client.list_jobs()]
            if options.json:
                print_json([to_json(job) for job in jobs])
            else:
                _table(jobs)
            return 0
        if options.action == "delete":
            await client.delete_job(name)
            return 0
        job = await (client.cancel_job(name) if options.action == "cancel" else client.get_job(name))
        if options.action == "plot":
            await asyncio.to_thread(curve.plot, job, options.output)
    if options.json:
        print_json(to_json(job))
    elif options.action == "plot":
        console().print(str(options.output))
    else:
        _show(job)
    return 0


def _table(jobs: list[pb.Job]) -> None:
    rows = (
        (
            job.name.removeprefix("jobs/"),
            state_name(job),
            job.spec.model.name,
            f"{len(job.epochs)}/{job.spec.epochs}",
            f"{job.epochs[-1].validation.accuracy:.2%}" if job.epochs else "",
            job.result.model_version,
            when(job.create_time),
        )
        for job in jobs
    )
    print_table(["job", "state", "model", "epochs#", "accuracy#", "version", "created"], rows, empty="no jobs")


def _show(job: pb.Job) -> None:
    print_fields(
        [
            ("job", job.name),
            ("state", state_name(job)),
            ("error", job.error),
            ("waiting", job.waiting),
            ("model", job.spec.model.name),
            ("workers, shards", f"{job.spec.workers}, {job.spec.shards}"),
            ("step", f"{job.progress.step} of {job.progress.epochs * job.progress.steps_per_epoch}"),
            ("samples", job.progress.samples),
            ("workers replaced", job.restarts),
            ("version", job.result.model_version),
            ("created", when(job.create_time)),
            ("ended", when(job.end_time)),
            ("trace", job.traceparent.split("-")[1] if job.traceparent else ""),
        ]
    )
    rows = (
        (
            epoch.epoch,
            f"{epoch.train_loss:.4f}",
            f"{epoch.validation.loss:.4f}",
            f"{epoch.validation.accuracy:.2%}",
            f"{epoch.validation.precision:.4f}",
            f"{epoch.validation.recall:.4f}",
            f"{epoch.validation.f1:.4f}",
            f"{epoch.seconds:.1f}",
            "best" if epoch.best else "",
        )
        for epoch in job.epochs
    )
    columns = ["epoch#", "train loss#", "loss#", "accuracy#", "precision#", "recall#", "F1#", "seconds#", ""]
    print_table(columns, rows, empty="no finished epoch")
