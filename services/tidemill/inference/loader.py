"""From a version in the registry to one that can run: fetch, verify, load from bytes, warm up."""

import logging
from asyncio import to_thread
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from opentelemetry import trace
from prometheus_client import Counter

from tidemill import plugins
from tidemill.errors import Internal, Invalid
from tidemill.inference import runtimes
from tidemill.inference.assembly import Assembler, unconfigured
from tidemill.inference.cache import BlobCache
from tidemill.inference.desired import Desired, Version
from tidemill.inference.loaded import Loaded
from tidemill.inference.manifests import File, ManifestCache
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.signatures import contradiction
from tidemill.inference.warmup import warm_up
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import from_traceparent
from tidemill.telemetry.setup import Telemetry

LOG = logging.getLogger(__name__)


class Artifacts(Protocol):
    """Where models come from."""

    async def files(self, artifact: str) -> tuple[File, ...]:
        """The files that the artifact with this digest lists. Raises `TidemillError`."""

    def read(self, sha256: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob, in order. Raises `TidemillError`."""


class Loader:
    """Loads and unloads versions. What they need is kept in `directory`, so that its source may be away.

    Args:
        settings: of every runtime.
        assembler: makes of a runtime what takes calls.
        largest_model: most bytes that the files of a version may have together.
        cache_limit: bytes above which blobs that no desired version needs are removed.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        directory: Path,
        settings: Settings,
        assembler: Assembler,
        telemetry: Telemetry,
        *,
        largest_model: int,
        cache_limit: int,
    ) -> None:
        self._artifacts = artifacts
        self._blobs = BlobCache(directory / "blobs")
        self._manifests = ManifestCache(directory / "manifests")
        self._settings = settings
        self._assembler = assembler
        self._tracer = telemetry.tracer
        self._largest_model = largest_model
        self._cache_limit = cache_limit
        self._touched: set[str] = set()
        self._loads = Counter(
            attributes.METRIC_MODEL_LOADS, "Attempts to load a version.", ["outcome"], registry=telemetry.registry
        )

    async def load(self, version: Version) -> Loaded:
        """A version that has run once.

        Raises:
            Invalid: it is not a model that can run here, or not what the registry says of it.
            DataLoss: what arrived is not what the artifact lists.
            Unavailable and others: its artifact cannot be had now.
            OSError: the cache cannot be written.
        """
        try:
            with self._tracer.start_as_current_span(
                attributes.SPAN_LOAD_MODEL,
                context=from_traceparent(version.traceparent),
                attributes={
                    attributes.MODEL: version.model,
                    attributes.MODEL_VERSION: str(version.number),
                    attributes.ARTIFACT: version.artifact,
                },
                record_exception=False,
            ) as span:
                runtime = await self._load(version, span)
                context = trace.set_span_in_context(span)
                configuration = version.configuration or unconfigured(version.model, version.format, runtime)
                loaded = self._assembler.assemble(version, configuration, runtime, context)
        except BaseException:
            self._loads.labels("failure").inc()
            raise
        self._loads.labels("success").inc()
        return loaded

    async def unload(self, loaded: Loaded) -> None:
        """Free a version that nobody uses any more."""
        version = loaded.version
        with self._tracer.start_as_current_span(
            attributes.SPAN_UNLOAD_MODEL,
            context=from_traceparent(version.traceparent),
            attributes={attributes.MODEL: version.model, attributes.MODEL_VERSION: loaded.label},
        ):
            await to_thread(loaded.close)
        self._assembler.forget(loaded)

    async def tidy(self, desired: Desired) -> None:
        """Remove from the cache what neither `desired` nor a load that has begun since needs, if it holds too much."""
        self._touched.clear()
        try:
            await to_thread(self._tidy, {version.artifact for version in desired.versions.values()})
        except OSError as error:
            LOG.warning("the cache cannot be tidied", extra={"error": str(error)})

    def _tidy(self, artifacts: set[str]) -> None:
        blobs = {file.sha256 for artifact in artifacts for file in self._manifests.read(artifact) or ()}
        self._manifests.prune(lambda name: name in artifacts or name in self._touched)
        self._blobs.prune(lambda name: name in blobs or name in self._touched, self._cache_limit)

    async def _load(self, version: Version, span: trace.Span) -> Runtime:
        kind = await to_thread(plugins.load, runtimes, version.format, Runtime)
        listed = {file.path: file for file in await self._files(version.artifact)}
        chosen = [listed[path] for path in kind.select(list(listed))]
        size = sum(file.size for file in chosen)
        if size > self._largest_model:
            raise Invalid(f"the model has {size} bytes; at most {self._largest_model} are loaded", reason="TOO_LARGE")
        span.set_attribute(attributes.BYTES, size)
        data = {file.path: await self._bytes(file) for file in chosen}
        return await to_thread(self._start, kind, data, version)

    def _start(self, kind: type[Runtime], data: Mapping[str, bytes], version: Version) -> Runtime:
        runtime = kind.load(data, self._settings)
        if version.signature is not None and (problem := contradiction(version.signature, runtime.signature)):
            raise Invalid(f"the file is not what the registry declares: {problem}", reason="SIGNATURE_MISMATCH")
        with self._tracer.start_as_current_span(attributes.SPAN_WARM_UP, record_exception=False):
            if problem := warm_up(runtime):
                where = {"model": version.model, "version": version.number}
                LOG.warning("found no shapes to warm up with", extra={**where, "error": problem})
        return runtime

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
