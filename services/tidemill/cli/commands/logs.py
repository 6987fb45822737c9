"""`tidemill logs`: the log lines of a job's processes."""

import argparse
import asyncio
from contextlib import aclosing

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.commands.jobs import job_name
from tidemill.cli.output import print_line, printable, to_json, when
from tidemill.cli.values import whole
from tidemill.clients.training import TrainingClient


class Logs(Command):
    """Prints log lines, and follows them when asked."""

    help = "show the log of a training job"
    examples = ("tidemill logs JOB", "tidemill logs JOB --follow")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("job", type=job_name, metavar="JOB", help="identifier of the job")
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
        parser.add_argument(
            "--from-line", type=whole(0), metavar="N", default=0, help="first line, from 0 (%(default)s)"
        )
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the log was shown."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    async with where.client("training", TrainingClient) as client:
        await client.get_job(options.job)  # an unknown job, or no service: said at once, not after patient attempts
        async with aclosing(client.logs(options.job, options.from_line, follow=options.follow)) as lines:
            async for line in lines:
                if options.json:
                    print_line(to_json(line))
                else:
                    who = "training" if line.rank < 0 else f"rank {line.rank}"
                    print(f"{when(line.time, '%H:%M:%S')} {who:<8} {printable(line.text)}", flush=True)
    return 0
