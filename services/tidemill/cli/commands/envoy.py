"""`tidemill envoy`: the configuration of an Envoy in front of several inference servers."""

import argparse
import sys

from tidemill.cli.commands.base import Command
from tidemill.cli.envoy import Balancer
from tidemill.cli.output import print_json
from tidemill.cli.values import address, whole


class Envoy(Command):
    """Prints what Envoy starts with: health checks, retries, limits."""

    help = "print the configuration of an Envoy in front of several inference servers"
    examples = (
        "tidemill envoy --upstream 10.0.0.1:8001 --upstream 10.0.0.2:8001 > envoy.json",
        "tidemill envoy --upstream 10.0.0.1:8001 --listen 0.0.0.0:8001 --retries 0",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument(
            "--upstream",
            type=address,
            action="append",
            required=True,
            metavar="HOST:PORT",
            help="gRPC address of a server; may be given again",
        )
        parser.add_argument(
            "--listen",
            type=address,
            default=("127.0.0.1", 8601),
            metavar="HOST:PORT",
            help="where clients call (127.0.0.1:8601)",
        )
        parser.add_argument(
            "--admin", type=address, metavar="HOST:PORT", help="where Envoy shows its state; not for clients"
        )
        parser.add_argument(
            "--retries",
            type=whole(0, 10),
            default=3,
            metavar="N",
            help="attempts after the first, of calls that did nothing or change nothing (%(default)s)",
        )
        parser.add_argument(
            "--timeout",
            type=whole(1, 3600),
            default=60,
            metavar="SECONDS",
            help="longest time of an inference with all its attempts, streams apart (%(default)s)",
        )
        parser.add_argument(
            "--check-seconds",
            type=whole(1, 60),
            default=1,
            metavar="SECONDS",
            help="from one health check of a server to the next (%(default)s)",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Print it as JSON, which is YAML as well."""
        balancer = Balancer(
            upstreams=options.upstream,
            listen=options.listen,
            admin=options.admin,
            retries=options.retries,
            timeout=options.timeout,
            check_seconds=options.check_seconds,
        )
        print_json(balancer.bootstrap())
        print(
            f"Servers need TIDEMILL_LINGER_SECONDS={balancer.linger_seconds:g} to be stopped without a failed call.",
            file=sys.stderr,
        )
        return 0
