"""A real S3 server (SeaweedFS) under the test's hand."""

import json
import secrets
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minio import Minio

from tests.support.paused import pause
from tests.support.ports import free_ports

START_TIMEOUT = 30.0
PORTS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


class S3Server:
    """One server on 127.0.0.1 with an identity for everything and one that only reads.

    Args:
        folder: for its data and its log; it must be new.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.access_key, self.secret_key = "admin", secrets.token_hex(16)
        self.reader_access_key, self.reader_secret_key = "reader", secrets.token_hex(16)
        (folder / "s3.json").write_text(json.dumps({"identities": self._identities()}))
        ports = free_ports(len(PORTS))
        self.endpoint = f"127.0.0.1:{ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            str(Path(sysconfig.get_path("scripts")) / "weed"),
            f"-logdir={folder}",
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            # Every bucket takes some volumes; they are not larger than what is in them.
            "-volume.max=4000",
            f"-s3.config={folder / 's3.json'}",
            # As everywhere else: an unknown bucket is an error, and a full one stays.
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
        ]

    def _identities(self) -> list[dict[str, object]]:
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        return [
            {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
            for name, access, secret, actions in (
                ("admin", self.access_key, self.secret_key, everything),
                ("reader", self.reader_access_key, self.reader_secret_key, ["Read", "List"]),
            )
        ]

    def client(self) -> Minio:
        """The SDK with all rights, for what the code under test does not offer."""
        return Minio(self.endpoint, self.access_key, self.secret_key, secure=False, region="us-east-1")

    def make_bucket(self) -> str:
        """A new bucket; its name."""
        name = f"test-{secrets.token_hex(8)}"
        self.client().make_bucket(name)
        return name

    def start(self) -> None:
        """Start it, or start it again over the same data, and wait until it serves."""
        if self._process is not None:
            raise RuntimeError("the S3 server runs already")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the S3 server did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without any warning."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            # Its sockets are named after its ports: the next one must not start before this one has gone.
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        if self._process is not None:
            pause(self._process.pid)

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/healthz", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """A started server, ended when the block ends."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
