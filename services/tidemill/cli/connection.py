"""Where the services are: variables win over what a running `tidemill up` says in its data directory, then defaults."""

import argparse
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry import trace

from tidemill.cli.stack import MOST_OFFSET, MOST_SHARDS, SERVICES, Stack
from tidemill.cli.values import whole
from tidemill.config import environ
from tidemill.errors import DeadlineExceeded, Invalid, Unavailable
from tidemill.telemetry.setup import Telemetry, setup

C = TypeVar("C")


def add_arguments(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """Declare the flags that every command which calls services has.

    Args:
        parser: of a command, or of one of its actions.
        inner: whether it is an action's, and the command's own parser declares them too.
    """
    group = parser.add_argument_group("connection and output")
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS if inner else environ().get("TIDEMILL_DATA", "tidemill-data"),
        help="data directory of `tidemill up` (TIDEMILL_DATA, or else tidemill-data)",
    )
    group.add_argument(
        "--port-offset",
        type=whole(0, MOST_OFFSET),
        metavar="N",
        default=argparse.SUPPRESS if inner else None,
        help="of `tidemill up`, when its data directory is not at hand",
    )
    group.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS if inner else False,
        help="print JSON for programs",
    )


class Connection:
    """Addresses of the services.

    Args:
        options: parsed flags of `add_arguments`.

    Raises:
        Invalid: the data directory says nonsense about where they are.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        data = Path(options.data).resolve()
        running = None if options.port_offset is not None else _running(data)
        self.stack = running or Stack(data=data, port_offset=options.port_offset or 0)
        self.shards = running.shards if running else None
        """Number of parameter-server shards of the running stack, if that is known."""
        variables = environ()
        known = self.stack.addresses
        self.addresses = {service: variables.get(variable) or known[variable] for service, variable in SERVICES.items()}
        """Service -> its `host:port`, for the gateway its URL."""
        self.jaeger = _url(variables.get("TIDEMILL_JAEGER_URL", ""))

    @asynccontextmanager
    async def client(
        self, service: str, kind: Callable[..., AbstractAsyncContextManager[C]], **settings: Any
    ) -> AsyncIterator[C]:
        """A client of class `kind`, and errors that say which service does not answer.

        Raises:
            Unavailable, DeadlineExceeded: the service cannot be reached, or takes too long.
        """
        address = self.addresses[service]
        try:
            async with kind(address, **settings) as client:
                yield client
        except (Unavailable, DeadlineExceeded) as error:
            if error.reason != error.default_reason:  # the service itself has said it
                raise
            problem = "took too long to answer" if isinstance(error, DeadlineExceeded) else "does not answer"
            raise type(error)(
                f"the {service} service at {address} {problem}; `tidemill status` shows which services run",
                reason="UNREACHABLE",
            ) from error

    @contextmanager
    def traced(self, name: str) -> Iterator[tuple[Telemetry, str]]:
        """A span around a command, kept where the embedded stack keeps its own; the telemetry and the trace id."""
        here = self.stack.traces.is_dir()
        telemetry = setup("cli", traces=f"file:{self.stack.traces}" if here else "none")
        try:
            with telemetry.tracer.start_as_current_span(name) as span:
                yield telemetry, trace.format_trace_id(span.get_span_context().trace_id)
        finally:
            telemetry.shutdown()


def _running(data: Path) -> Stack | None:
    """The stack that runs over `data`, as it wrote it down."""
    path = data / "up.json"
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not text:  # it has ended
        return None
    try:
        found = json.loads(text)
        return Stack(
            data=data,
            port_offset=whole(0, MOST_OFFSET)(found["port_offset"]),
            shards=whole(1, MOST_SHARDS)(found["shards"]),
        )
    except (ValueError, KeyError, TypeError, argparse.ArgumentTypeError) as error:
        raise Invalid(f"{path} is not what `tidemill up` writes") from error


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise Invalid(f"TIDEMILL_JAEGER_URL: {text!r} is not an http URL")
    return text
