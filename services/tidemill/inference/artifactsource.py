"""Versions of the registry: their files are artifacts, fetched once and kept in a cache by digest."""

import logging
from asyncio import to_thread
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from tidemill.errors import Internal, Invalid
from tidemill.inference.cache import BlobCache
from tidemill.inference.configuration import Configuration
from tidemill.inference.desired import Desired, Version
from tidemill.inference.manifests import File, ManifestCache
from tidemill.inference.modelconfig.declared import FILE, Declared
from tidemill.inference.modelconfig.text import MAX_BYTES
from tidemill.inference.opened import Opened

LOG = logging.getLogger(__name__)
MAX_SIDE_FILE = 64 << 20
"""Bytes of a file that a configuration names: labels, samples, states."""


class Artifacts(Protocol):
    """Where the bytes come from."""

    async def files(self, artifact: str) -> tuple[File, ...]:
        """The files that the artifact with this digest lists. Raises `TidemillError`."""

    def read(self, sha256: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob, in order. Raises `TidemillError`."""


class ArtifactSource:
    """Opens versions of the registry. What they need is kept in `directory`, so that the artifact service may be away.

    An artifact may hold a `config.pbtxt`. One that is not trusted can say how the model is run, and no more.

    Args:
        cache_limit: bytes above which blobs that no desired version needs are removed.
        trust_jobs: whether versions that a job has made may hold code.
    """

    def __init__(self, artifacts: Artifacts, directory: Path, *, cache_limit: int, trust_jobs: bool = False) -> None:
        self._artifacts = artifacts
        self._blobs = BlobCache(directory / "blobs")
        self._manifests = ManifestCache(directory / "manifests")
        self._cache_limit = cache_limit
        self._trust_jobs = trust_jobs
        self._touched: set[str] = set()

    async def open(self, version: Version) -> Opened:
        """The version. Raises `TidemillError` or OSError."""
        listed = {file.path: file for file in await self._files(version.artifact)}

        async def read(paths: Sequence[str]) -> dict[str, bytes]:
            return {path: await self._bytes(listed[path]) for path in paths}

        configuration = version.configuration
        if configuration is None and FILE in listed:
            configuration = await self._configuration(version, listed)
        return Opened(
            runtime=version.format,
            sizes={file.path: file.size for file in listed.values() if file.path != FILE},
            read=read,
            configuration=configuration,
            trusted=self._trusted(version),
        )

    async def tidy(self, desired: Desired) -> None:
        """Remove from the cache what neither `desired` nor a load that has begun since needs, if it holds too much."""
        self._touched.clear()
        try:
            await to_thread(self._tidy, {version.artifact for version in desired.versions.values()})
        except OSError as error:
            LOG.warning("the cache cannot be tidied", extra={"error": str(error)})

    async def _configuration(self, version: Version, listed: Mapping[str, File]) -> Configuration:
        """What the artifact's own `config.pbtxt` says. Raises Invalid."""
        written = await self._small(listed, FILE, MAX_BYTES)
        declared = Declared(version.model, written)
        kind = declared.kind(list(listed))
        if kind.runtime != version.format:
            raise Invalid(
                f"{FILE} is for the runtime {kind.runtime}, but the version's format is {version.format}",
                reason="CONFIG_MISMATCH",
            )
        named: dict[str, bytes] = {}
        for path in declared.files:
            named[path] = await self._small(listed, path, MAX_SIDE_FILE)
        return declared.configuration(kind, named.__getitem__, trusted=self._trusted(version))

    def _trusted(self, version: Version) -> bool:
        return self._trust_jobs and bool(version.job)

    async def _small(self, listed: Mapping[str, File], path: str, limit: int) -> bytes:
        """Raises Invalid when there is no such file, or it is too large."""
        if path not in listed:
            raise Invalid(f"the configuration names '{path}', which is not there", reason="INVALID_CONFIG")
        if listed[path].size > limit:
            raise Invalid(f"'{path}' has more than {limit} bytes", reason="TOO_LARGE")
        return await self._bytes(listed[path])

    def _tidy(self, artifacts: set[str]) -> None:
        blobs = {file.sha256 for artifact in artifacts for file in self._manifests.read(artifact) or ()}
        self._manifests.prune(lambda name: name in artifacts or name in self._touched)
        self._blobs.prune(lambda name: name in blobs or name in self._touched, self._cache_limit)

    async def _files(self, artifact: str) -> tuple[File, ...]:
        self._touched.add(artifact)
        files = await to_thread(self._manifests.read, artifact)
        if files is None:
            files = await self._artifacts.files(artifact)
            await to_thread(self._manifests.write, artifact, files)
        return files

    async def _bytes(self, file: File) -> bytes:
        """The bytes of a file, verified: those in the cache, or else those that are fetched into it."""
        self._touched.add(file.sha256)
        data = await to_thread(self._blobs.read, file.sha256)
        if data is None:
            async with aclosing(self._artifacts.read(file.sha256)) as chunks:
                await self._blobs.fill(file.sha256, chunks, file.size)
            data = await to_thread(self._blobs.read, file.sha256)
        if data is None:
            raise Internal(f"blob {file.sha256} changed right after it was written", reason="CACHE_DAMAGED")
        return data
