"""The operations port of a process: `/metrics`, `/healthz` and `/readyz` over HTTP."""

import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


class Metrics(Protocol):
    """What can be shown under `/metrics`; a `CollectorRegistry` is one."""

    def collect(self) -> Iterable[Metric]:
        """All metrics now."""


class OpsServer:
    """Serves metrics and health in threads of its own, so that they answer while the service is busy.

    Args:
        registry: the metrics to show.
        ready: whether the process can serve now.
    """

    def __init__(self, registry: Metrics, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready
        self._server: ThreadingHTTPServer | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for 0).

        Raises:
            OSError: the port is in use.
        """
        registry, ready = self._registry, self._ready

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    self._answer(200, b"ok\n")
                elif self.path == "/readyz":
                    self._answer(*((200, b"ready\n") if ready() else (503, b"not ready\n")))
                else:
                    self._answer(404, b"not found\n")

            def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep probes out of the log."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is nobody's error."""

        self._server = Server((host, port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="ops", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
