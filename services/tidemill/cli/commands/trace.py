"""`tidemill trace`: the span tree of a job, or of any trace."""

import argparse
import asyncio
import re

from tidemill.cli import connection, tracetree
from tidemill.cli.commands.base import Command
from tidemill.cli.commands.jobs import job_name
from tidemill.cli.output import console, print_json
from tidemill.clients.training import TrainingClient
from tidemill.errors import FailedPrecondition


class Trace(Command):
    """Shows one trace: from the span files of the embedded stack, or from Jaeger when TIDEMILL_JAEGER_URL is set."""

    help = "show the span tree of a job or a trace id"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("subject", help="a job, or a trace id of 32 hexadecimal digits")
        parser.add_argument("--all", action="store_true", help="show repeated spans one by one")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when there was a trace to show."""
        where = connection.Connection(options)
        subject = options.subject
        trace_id = subject if re.fullmatch("[0-9a-f]{32}", subject) else asyncio.run(_trace_of(where, subject))
        if where.jaeger:
            spans = tracetree.from_jaeger(where.jaeger, trace_id)
        else:
            spans = tracetree.from_files(where.stack.traces, trace_id)
        if options.json:
            print_json([tracetree.to_json(span) for span in sorted(spans, key=lambda span: span.start)])
            return 0
        out = console()
        out.print(f"trace {trace_id}")
        for line in tracetree.render(spans, fold=len(spans) if options.all else tracetree.FOLD):
            out.print(line)
        return 0


async def _trace_of(where: connection.Connection, job: str) -> str:
    async with TrainingClient(where.training) as client:
        found = await client.get_job(job_name(job))
    if not found.traceparent:
        raise FailedPrecondition(f"{found.name} has no trace", reason="NO_TRACE")
    return found.traceparent.split("-")[1]
