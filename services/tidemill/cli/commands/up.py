"""`tidemill up`: the whole platform on this machine, without anything else installed."""

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidemill.cli import running
from tidemill.cli.commands.base import Command
from tidemill.cli.stack import INFERENCE, MANAGEMENT, MOST_OFFSET, MOST_SHARDS, OIP_REST, TFS_REST, Stack
from tidemill.cli.values import whole
from tidemill.config import environ
from tidemill.errors import FailedPrecondition

START_SECONDS = 60.0


class Up(Command):
    """Starts the embedded stack and keeps it running until Ctrl-C."""

    help = "run all services on this machine, on loopback, until Ctrl-C"
    examples = ("tidemill up", "tidemill up --data ~/tidemill --port-offset 1000 --quiet")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            default=environ().get("TIDEMILL_DATA", "tidemill-data"),
            help="directory of all data (TIDEMILL_DATA, or else tidemill-data)",
        )
        parser.add_argument(
            "--port-offset",
            type=whole(0, MOST_OFFSET),
            default=0,
            metavar="N",
            help="added to every port (%(default)s)",
        )
        parser.add_argument(
            "--shards",
            type=whole(1, MOST_SHARDS),
            default=2,
            metavar="N",
            help="parameter-server processes (%(default)s)",
        )
        parser.add_argument(
            "--quiet", action="store_true", help="do not show the services' log lines; DIR/logs has them in any case"
        )

    def run(self, options: argparse.Namespace) -> int:
        """Run until stopped; 0 after Ctrl-C or SIGTERM."""
        stack = Stack(data=options.data.resolve(), port_offset=options.port_offset, shards=options.shards)
        stack.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(stack):
            return running.run(
                stack.programs(), stack.data / "logs", _welcome(stack), START_SECONDS, quiet=options.quiet
            )


@contextmanager
def _locked(stack: Stack) -> Iterator[None]:
    """Hold the data directory, and say in it where the services are, so that commands find them."""
    path = stack.data / "up.json"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"another `tidemill up` runs on {stack.data}", reason="DATA_IN_USE") from None
        file.truncate(0)
        places = {"port_offset": stack.port_offset, "shards": stack.shards, **stack.addresses}
        file.write(json.dumps({"pid": os.getpid(), **places}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _welcome(stack: Stack) -> str:
    return f"""
Tidemill is ready. Data: {stack.data}

  REST, documentation    http://{stack.address(MANAGEMENT)}/docs
  Open Inference         gRPC {stack.address(INFERENCE)}   REST http://{stack.address(OIP_REST)}
  TensorFlow Serving     REST http://{stack.address(TFS_REST)}

Ctrl-C stops it.
"""
