"""Artifact services for tests: in this process, and as a process of its own that can be killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports
from tests.support.s3 import S3Server
from tests.support.serve import serving
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.api.artifacts.v1 import artifacts_pb2_grpc as pg
from tidemill.artifacts.app import build
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.artifacts.stores.base import Store
from tidemill.clock import Clock
from tidemill.rpc.caller import Caller

MIB = 1 << 20


def content(size: int, seed: int = 0) -> bytes:
    """Reproducible bytes that do not repeat."""
    return hashlib.shake_128(seed.to_bytes(4)).digest(size)


def sha256(data: bytes) -> str:
    """The digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def config(data: Path, **settings: Any) -> ArtifactsConfig:
    """Settings of a service on free ports that announces itself nowhere."""
    return ArtifactsConfig(**{"data": str(data), "port": 0, "ops_port": 0, "registry_address": "", **settings})


def s3_settings(server: S3Server, bucket: str) -> dict[str, Any]:
    """Settings of the store `s3` for a bucket of `server`."""
    return {
        "store": "s3",
        "s3_endpoint": server.endpoint,
        "s3_bucket": bucket,
        "s3_secure": False,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
        "s3_timeout": 10.0,
    }


class Raw:
    """The generated stub, with calls that raise `tidemill.errors`: for what the client would not do."""

    def __init__(self, address: str) -> None:
        self.caller = Caller(address, [pb.DESCRIPTOR.services_by_name["ArtifactService"]])
        self.stub: Any = pg.ArtifactServiceStub(self.caller.channel)

    async def call(self, method: str, request: Any, timeout: float = 20.0) -> Any:
        """One unary call."""
        return await self.caller.unary(getattr(self.stub, method), request, timeout=timeout)

    async def create(self, data: bytes, *, digest: str = "") -> pb.Upload:
        """An upload announced for `data`."""
        request = pb.CreateUploadRequest(sha256=digest or sha256(data), size=len(data))
        upload: pb.Upload = await self.call("CreateUpload", request)
        return upload

    async def write(self, name: str, *chunks: tuple[int, bytes]) -> pb.Upload:
        """One stream of chunks, each with its offset."""

        async def requests() -> AsyncIterator[pb.WriteUploadRequest]:
            for offset, data in chunks:
                yield pb.WriteUploadRequest(name=name, offset=offset, data=data)

        upload: pb.Upload = await self.caller.upload(self.stub.WriteUpload, requests(), timeout=30)
        return upload

    async def send(self, name: str, data: bytes, start: int = 0) -> pb.Upload:
        """One stream of chunks of 1 MiB."""
        return await self.write(name, *((at, data[at : at + MIB]) for at in range(start, len(data), MIB)))

    async def upload(self, data: bytes) -> pb.Blob:
        """A whole upload."""
        upload = await self.create(data)
        if upload.state == pb.Upload.STATE_ACTIVE and data:
            await self.send(upload.name, data)
        blob: pb.Blob = await self.call("FinishUpload", pb.FinishUploadRequest(name=upload.name))
        return blob

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> list[pb.ReadBlobResponse]:
        """All messages of one read."""
        request = pb.ReadBlobRequest(name=f"blobs/{digest}", offset=offset, limit=limit)
        return [response async for response in self.caller.stream(self.stub.ReadBlob, request, timeout=30)]


@asynccontextmanager
async def raw_calls(address: str) -> AsyncIterator[Raw]:
    """A `Raw` for the service at `address`."""
    raw = Raw(address)
    try:
        yield raw
    finally:
        await raw.caller.close()


@asynccontextmanager
async def served(
    settings: ArtifactsConfig, *, store: Store | None = None, clock: Clock | None = None
) -> AsyncIterator[Raw]:
    """A service in this process, and calls to it."""
    async with serving(build(settings, store=store, clock=clock)) as address, raw_calls(address) as raw:
        yield raw


class ServiceProcess:
    """A service in a process of its own, on one port for all its lives.

    Args:
        data: its data directory.
        folder: for its log.
        variables: more of its environment.
    """

    def __init__(self, data: Path, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")},
            "TIDEMILL_ARTIFACTS_DATA": str(data),
            "TIDEMILL_ARTIFACTS_PORT": str(port),
            "TIDEMILL_ARTIFACTS_OPS_PORT": "0",
            "TIDEMILL_ARTIFACTS_ANNOUNCE_FILE": str(folder / "ports.json"),
            "TIDEMILL_REGISTRY_ADDRESS": "",
            **(variables or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        if self._process is None:
            raise RuntimeError("the service does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it listens."""
        (self._folder / "ports.json").unlink(missing_ok=True)
        with (self._folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tidemill.artifacts"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while not (self._folder / "ports.json").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the service did not start:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def log(self) -> str:
        """What it has logged."""
        return (self._folder / "service.log").read_text()

    def ops_port(self) -> int:
        """Where it shows its metrics."""
        return int(json.loads((self._folder / "ports.json").read_text())["ops"])

    def kill(self) -> None:
        """End it without any warning."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it in good order; its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(how)
        return process.wait(timeout=30)


@contextmanager
def service_process(data: Path, folder: Path, variables: Mapping[str, str] | None = None) -> Iterator[ServiceProcess]:
    """A started process, ended when the block ends."""
    service = ServiceProcess(data, folder, variables)
    service.start()
    try:
        yield service
    finally:
        service.kill()
