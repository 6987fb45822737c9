"""`tidemill logs`: the log lines of a job's processes."""

import argparse
import asyncio
from contextlib import aclosing

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.commands.jobs import job_name
from tidemill.cli.output import console, print_line, to_json
from tidemill.clients.training import TrainingClient


class Logs(Command):
    """Prints log lines, and follows them when asked."""

    help = "show the log of a training job"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("job", help="identifier of the job")
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
        parser.add_argument("--from-line", type=int, default=0, help="first line, from 0 (%(default)s)")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the log was shown."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    out = console()
    async with TrainingClient(where.training) as client:
        lines = client.logs(job_name(options.job), options.from_line, follow=options.follow)
        async with aclosing(lines):
            async for line in lines:
                if options.json:
                    print_line(to_json(line))
                else:
                    who = "training" if line.rank < 0 else f"rank {line.rank}"
                    out.print(f"{line.time.ToDatetime():%H:%M:%S} {who:<8} {line.text}")
    return 0
