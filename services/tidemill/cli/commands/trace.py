"""`tidemill trace`: the span tree of a job, or of any trace."""

import argparse
import asyncio
import re

from tidemill.cli import connection, tracetree
from tidemill.cli.commands.base import Command
from tidemill.cli.commands.jobs import job_name
from tidemill.cli.output import print_json, width
from tidemill.cli.views import trace_of
from tidemill.clients.training import TrainingClient
from tidemill.errors import FailedPrecondition


class Trace(Command):
    """Shows one trace: from the span files of the embedded stack, or from Jaeger when TIDEMILL_JAEGER_URL is set."""

    help = "show the span tree of a job or a trace id"
    examples = (
        "tidemill trace JOB",
        "tidemill trace 4bf92f3577b34da6a3ce929d0e0e4736 --all",
        "TIDEMILL_JAEGER_URL=http://127.0.0.1:16686 tidemill trace JOB",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("subject", metavar="JOB_OR_TRACE", help="a job, or a trace id of 32 hexadecimal digits")
        parser.add_argument("--all", action="store_true", help="show repeated spans one by one")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when there was a trace to show."""
        where = connection.Connection(options)
        subject = options.subject.lower()
        trace_id = subject if re.fullmatch("[0-9a-f]{32}", subject) else asyncio.run(_trace_of(where, options.subject))
        if where.jaeger:
            spans = tracetree.from_jaeger(where.jaeger, trace_id)
        else:
            spans = tracetree.from_files(where.stack.traces, trace_id)
        if options.json:
            print_json([tracetree.to_json(span) for span in sorted(spans, key=lambda span: span.start)])
            return 0
        print(f"trace {trace_id}")
        for line in tracetree.render(spans, fold=len(spans) if options.all else tracetree.FOLD, width=width()):
            print(line)
        return 0


async def _trace_of(where: connection.Connection, job: str) -> str:
    async with where.client("training", TrainingClient) as client:
        found = await client.get_job(job_name(job))
    trace_id = trace_of(found)
    if not trace_id:
        raise FailedPrecondition(f"{found.name} has no trace", reason="NO_TRACE")
    return trace_id
