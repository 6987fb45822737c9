"""`tidemill serve`: a directory of models over the Open Inference Protocol, and nothing else."""

import argparse
import shutil
import tempfile
from pathlib import Path

from tidemill.cli import running
from tidemill.cli.commands.base import Command
from tidemill.cli.serving import Serving
from tidemill.cli.stack import INFERENCE, MOST_OFFSET, OIP_REST, OPS
from tidemill.cli.values import whole
from tidemill.errors import NotFound

START_SECONDS = 3600.0
"""Large models take their time."""


class Serve(Command):
    """Starts inference and its REST over a model repository, and keeps them running until Ctrl-C."""

    help = "serve a directory of models in Triton's layout on this machine, until Ctrl-C"
    examples = (
        "tidemill serve --model-repository models",
        "tidemill serve --model-repository models --model-control poll",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument(
            "--model-repository", type=Path, metavar="DIR", required=True, help="directory with one folder a model"
        )
        parser.add_argument(
            "--model-control",
            choices=("none", "poll", "explicit"),
            default="none",
            help="load all at the start; as the directory changes; or by request (%(default)s)",
        )
        parser.add_argument(
            "--poll-seconds",
            type=whole(1, 86400),
            default=15,
            metavar="N",
            help="time from one look at the directory to the next (%(default)s)",
        )
        parser.add_argument(
            "--load-model",
            action="append",
            default=[],
            metavar="NAME",
            help="load this model at the start with explicit control; may be given again; * = all",
        )
        parser.add_argument(
            "--max-model-memory",
            type=whole(0),
            default=0,
            metavar="BYTES",
            help="most bytes of model files loaded together, both versions of a swap counted; 0 = any (%(default)s)",
        )
        parser.add_argument(
            "--allow-client-shm", action="store_true", help="let clients on this machine name shared memory"
        )
        parser.add_argument(
            "--server-name", default="tidemill", metavar="NAME", help="name that clients see (%(default)s)"
        )
        parser.add_argument(
            "--mirror-encoding",
            action="store_true",
            help="answer typed requests by typed elements, as clients of KServe and MLServer expect",
        )
        parser.add_argument(
            "--fronts",
            type=whole(0),
            default=0,
            metavar="N",
            help="processes that answer requests; 0 = one a core (%(default)s)",
        )
        parser.add_argument(
            "--max-message-mib",
            type=whole(1, 2047),
            default=64,
            metavar="N",
            help="most MiB of tensors in a request or an answer; more than 1024 over gRPC alone (%(default)s)",
        )
        parser.add_argument(
            "--port-offset",
            type=whole(0, MOST_OFFSET),
            default=0,
            metavar="N",
            help="added to every port (%(default)s)",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Run until stopped; 0 after Ctrl-C or SIGTERM. The log files stay only when something went wrong."""
        if not options.model_repository.is_dir():
            raise NotFound(f"{options.model_repository} is no directory", reason="NO_REPOSITORY")
        serving = Serving(
            repository=options.model_repository.resolve(),
            control=options.model_control,
            poll_seconds=options.poll_seconds,
            load=tuple(options.load_model),
            memory=options.max_model_memory,
            shared_memory=options.allow_client_shm,
            name=options.server_name,
            mirror_encoding=options.mirror_encoding,
            fronts=options.fronts,
            largest=options.max_message_mib,
            port_offset=options.port_offset,
        )
        logs = Path(tempfile.mkdtemp(prefix="tidemill-serve-"))
        status = running.run(serving.programs(), logs, _welcome(serving), START_SECONDS)
        shutil.rmtree(logs, ignore_errors=True)
        return status


def _welcome(serving: Serving) -> str:
    return f"""
Serving {serving.repository}: it is ready.

  Open Inference   gRPC {serving.address(INFERENCE)}   REST http://{serving.address(OIP_REST)}
  metrics          http://{serving.address(OPS["inference"])}/metrics

Ctrl-C stops it.
"""
