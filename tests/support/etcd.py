"""A real etcd under the test's hand."""

import base64
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.paused import pause
from tests.support.ports import free_ports

START_TIMEOUT = 20.0


class EtcdServer:
    """One member on 127.0.0.1, with quick elections so that restarts do not take long.

    Args:
        folder: for its data and its log.
        flags: more flags of etcd.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        binary = shutil.which("etcd")
        if binary is None:
            raise RuntimeError("these tests need the program etcd (3.4 or later) on the PATH")
        self.folder = folder
        self.port, self._peer_port, self._metrics_port = free_ports(3)
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        secure = any(flag.startswith("--cert-file") for flag in flags)
        client = f"{'https' if secure else 'http'}://{self.address}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._command = [
            binary,
            f"--data-dir={folder / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--listen-metrics-urls=http://127.0.0.1:{self._metrics_port}",
            "--heartbeat-interval=20",
            "--election-timeout=200",
            "--log-level=error",
            "--logger=zap",
            *flags,
        ]

    def start(self) -> None:
        """Start it, or start it again over the same data, and wait until it serves."""
        if self._process is not None:
            raise RuntimeError("etcd runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"etcd did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without any warning."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it and start it again over the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        if self._process is not None:
            pause(self._process.pid)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def post(self, path: str, body: Mapping[str, object], token: str = "") -> Any:
        """Call the JSON gateway: administration that the client under test does not offer."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": token} if token else {})
        request = urllib.request.Request(
            f"http://{self.address}/v3/{path}", data=json.dumps(body).encode(), headers=headers
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/health", timeout=2) as reply:
                return bool(json.load(reply).get("health") == "true")
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextmanager
def running_etcd(folder: Path, flags: Sequence[str] = ()) -> Iterator[EtcdServer]:
    """A started etcd, ended when the block ends."""
    server = EtcdServer(folder, flags)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def enable_auth(server: EtcdServer, *, user: str, password: str, prefix: str) -> None:
    """Turn authentication on: `user` may read and write under `prefix`, and `root` (password "root") everything."""

    def text(value: str) -> str:
        return base64.b64encode(value.encode()).decode()

    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    permission = {"permType": "READWRITE", "key": text(prefix), "range_end": text(end)}
    steps: list[tuple[str, dict[str, object]]] = [
        ("auth/user/add", {"name": "root", "password": "root"}),
        ("auth/role/add", {"name": "root"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/user/add", {"name": user, "password": password}),
        ("auth/role/add", {"name": f"{user}-role"}),
        ("auth/role/grant", {"name": f"{user}-role", "perm": permission}),
        ("auth/user/grant", {"user": user, "role": f"{user}-role"}),
        ("auth/enable", {}),
    ]
    for path, body in steps:
        server.post(path, body)
