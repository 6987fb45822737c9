"""`tidemill jobs`: training jobs."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import connection, curve
from tidemill.cli.commands.base import Command
from tidemill.cli.explanation import show_explanation
from tidemill.cli.output import print_json, to_json
from tidemill.cli.parser import subcommands
from tidemill.cli.progress import state_name
from tidemill.cli.values import picture
from tidemill.cli.views import show_job, show_jobs
from tidemill.clients.training import ENDED, TrainingClient

STATES = [state_name(pb.Job(state=value)) for value in pb.Job.State.values() if value]


class Jobs(Command):
    """Lists, shows, cancels, pauses, deletes and plots jobs."""

    help = "list, show, explain, cancel, pause, resize, delete or plot training jobs"
    examples = (
        "tidemill jobs",
        "tidemill jobs show JOB",
        "tidemill jobs why JOB",
        "tidemill jobs resize JOB --workers 4 --shards 2",
        "tidemill jobs plot JOB --output curve.svg",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        connection.add_arguments(parser)
        parser.set_defaults(state="")
        add = subcommands(parser, "list")
        listed = add("list", "list jobs, newest first")
        listed.add_argument("--state", choices=STATES, default="", help="only those in this state")
        connection.add_arguments(listed, inner=True)
        for name, help in (
            ("show", "show a job and its epochs"),
            ("why", "say what a job waits for, and who holds up the others"),
            ("cancel", "stop a job; what it has learned is lost"),
            ("pause", "let a job rest; it holds no process and no shard, and can go on"),
            ("resume", "let a paused job go on where it was"),
            ("resize", "let a job go on with other numbers of workers and shards, while it works"),
            ("delete", "delete a job that has ended, with its log; what it registered stays"),
            ("plot", "draw the learning curve of a job"),
        ):
            action = add(name, help)
            action.add_argument("job", type=job_name, metavar="JOB", help="identifier of the job")
            if name == "plot":
                action.add_argument(
                    "--output", type=picture, metavar="FILE", default="curve.png", help="PNG, SVG or PDF (%(default)s)"
                )
            if name == "resume":
                action.add_argument(
                    "--shards", type=int, metavar="K", default=0, help="parameter shards to go on with (as before)"
                )
            if name == "resize":
                action.add_argument("--workers", type=int, metavar="N", default=0, help="worker processes (as before)")
                action.add_argument("--shards", type=int, metavar="K", default=0, help="parameter shards (as before)")
            connection.add_arguments(action, inner=True)

    def run(self, options: argparse.Namespace) -> int:
        """0 when it was done."""
        return asyncio.run(_run(options))


def job_name(given: str) -> str:
    """`jobs/x` for `x` and for `jobs/x`."""
    return given if given.startswith("jobs/") else f"jobs/{given}"


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with where.client("training", TrainingClient) as client:
        await _ACTIONS[options.action](client, options)
    return 0


async def _list(client: TrainingClient, options: argparse.Namespace) -> None:
    state = pb.Job.State.Value(f"STATE_{(options.state or 'unspecified').upper()}")
    jobs = [job async for job in client.list_jobs(state=state)]
    if options.json:
        print_json([to_json(job) for job in jobs])
    else:
        show_jobs(jobs)


async def _show(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.get_job(options.job)
    if options.json:
        print_json(to_json(job))
    else:
        show_job(job)


async def _cancel(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.cancel_job(options.job)
    if options.json:
        print_json(to_json(job))
    else:
        print(f"{job.name} {'had ended before' if job.state in ENDED else 'was asked to stop'}: {state_name(job)}")


async def _pause(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.pause_job(options.job)
    if options.json:
        print_json(to_json(job))
    else:
        print(f"{job.name} {'is paused' if job.state == pb.Job.STATE_PAUSED else 'was asked to pause'}")


async def _resume(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.resume_job(options.job, shards=options.shards)
    if options.json:
        print_json(to_json(job))
    else:
        print(f"{job.name} goes on: {state_name(job)}")


async def _resize(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.resize_job(options.job, workers=options.workers, shards=options.shards)
    if options.json:
        print_json(to_json(job))
        return
    to = job.resize if job.HasField("resize") else job.spec
    verb = "was asked for" if job.HasField("resize") else "has"
    print(f"{job.name} {verb} {to.workers} workers and {to.shards} shards")


async def _why(client: TrainingClient, options: argparse.Namespace) -> None:
    found = await client.explain_job(options.job)
    if options.json:
        print_json(to_json(found))
    else:
        show_explanation(found)


async def _delete(client: TrainingClient, options: argparse.Namespace) -> None:
    await client.delete_job(options.job)
    if options.json:
        print_json({"deleted": [options.job]})
    else:
        print(f"{options.job} is deleted")


async def _plot(client: TrainingClient, options: argparse.Namespace) -> None:
    job = await client.get_job(options.job)
    await asyncio.to_thread(curve.plot, job, options.output)
    if options.json:
        print_json(to_json(job))
    else:
        print(options.output)


Action = Callable[[TrainingClient, argparse.Namespace], Awaitable[None]]
_ACTIONS: dict[str, Action] = {
    "list": _list,
    "show": _show,
    "why": _why,
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "resize": _resize,
    "delete": _delete,
    "plot": _plot,
}
