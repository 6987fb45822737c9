"""Where the services are: variables win over what a running `tidemill up` says in its data directory, then defaults."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry import trace

from tidemill.cli.stack import Stack
from tidemill.config import environ
from tidemill.errors import Invalid
from tidemill.telemetry.setup import Telemetry, setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that every command which calls services has."""
    data = environ().get("TIDEMILL_DATA", "tidemill-data")
    parser.add_argument("--data", type=Path, default=data, help="data directory of `tidemill up` (%(default)s)")
    parser.add_argument("--port-offset", type=int, help="of `tidemill up`, when its data directory is not at hand")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


class Connection:
    """Addresses of the services.

    Args:
        options: parsed flags of `add_arguments`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        data = Path(options.data).resolve()
        offset = options.port_offset
        if offset is None:
            offset = _running(data).get("port_offset", 0)
        self.stack = Stack(data=data, port_offset=offset)
        variables = environ()
        self._addresses = {name: variables.get(name) or value for name, value in self.stack.addresses.items()}
        self.jaeger = variables.get("TIDEMILL_JAEGER_URL", "")

    def __getattr__(self, service: str) -> str:
        """`connection.registry` is the registry's `host:port`; `connection.gateway` its URL."""
        kind = "URL" if service == "gateway" else "ADDRESS"
        try:
            return self._addresses[f"TIDEMILL_{service.upper()}_{kind}"]
        except KeyError:
            raise AttributeError(service) from None

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


def _running(data: Path) -> dict[str, Any]:
    try:
        text = (data / "up.json").read_text()
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise Invalid(f"{data / 'up.json'} is not what `tidemill up` writes") from error
    return found if isinstance(found, dict) else {}
