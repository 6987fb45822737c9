"""What the artifact service keeps, without the service: blobs and a catalog over a store that may fail."""

import itertools
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.support.artifacts import sha256
from tests.support.stores import FailingStore
from tidemill import errors
from tidemill.artifacts.blobs import Blobs
from tidemill.artifacts.catalog import Artifact, Catalog
from tidemill.artifacts.manifests import File
from tidemill.artifacts.metrics import Metrics
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.stores.directory import DirectoryStore


class Shelf:
    """Blobs and artifacts below a folder; `restart` is what a new process makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        self.store = FailingStore(DirectoryStore(folder / "objects"))
        self.restart()

    def restart(self) -> None:
        self.store.fail_at = self.store.writes = 0
        sections = Sections()
        self.blobs = Blobs(self.store, sections, Metrics(CollectorRegistry()))
        self.catalog = Catalog(self.store, self.blobs, sections)

    def written(self, data: bytes) -> Path:
        path = self.folder / f"source {next(self.numbers)}"  # never again: a store may share the file
        path.write_bytes(data)
        return path

    async def put(self, *texts: str) -> None:
        for text in texts:
            data = text.encode()
            await self.blobs.put(sha256(data), len(data), self.written(data))

    async def create(self, *texts: str, kind: str = "model", reference: str = "") -> Artifact:
        files = [File(text, sha256(text.encode()), 0) for text in texts]
        return await self.catalog.create(kind, files, {}, reference)

    async def keys(self, area: str) -> set[str]:
        return {entry.key.split("/", 1)[1] for entry in await self.store.entries(f"{area}/")}

    async def artifacts(self) -> dict[str, Artifact]:
        found, after = {}, ""
        while True:
            page, after = await self.catalog.page(after, 1000)
            found.update({artifact.digest: artifact for artifact in page})
            if not after:
                return found

    async def check(self) -> None:
        """Every blob of every artifact is there, and protected."""
        for artifact in (await self.artifacts()).values():
            for file in artifact.manifest.files:
                assert (await self.blobs.get(file.sha256)).size == file.size
                with pytest.raises(errors.FailedPrecondition):
                    await self.blobs.delete(file.sha256)


def digest(text: str) -> str:
    """The digest of a text's bytes."""
    return sha256(text.encode())
