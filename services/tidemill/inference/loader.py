"""From a desired version to one that can run: open, load from bytes, complete its configuration, warm up."""

import asyncio
import logging
from asyncio import to_thread
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from opentelemetry import trace
from prometheus_client import Counter

from tidemill import plugins
from tidemill.errors import Exhausted, Invalid
from tidemill.inference import runtimes
from tidemill.inference.assembly import Assembler, unconfigured
from tidemill.inference.configuration import Configuration, Isolation
from tidemill.inference.desired import Desired, Version
from tidemill.inference.fronts.picture import may_be_copied
from tidemill.inference.fronts.spool import Spool
from tidemill.inference.isolation.isolated import isolate
from tidemill.inference.loaded import Loaded
from tidemill.inference.modelconfig.complete import complete, tracked
from tidemill.inference.opened import Opened, Source
from tidemill.inference.reshaping import reshaped
from tidemill.inference.runtimes.base import CallRuntime, Runtime, Settings
from tidemill.inference.signatures import contradiction
from tidemill.inference.trial import with_batches
from tidemill.inference.warmup import run_warmups, warm_up
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import from_traceparent
from tidemill.telemetry.setup import Telemetry

LOG = logging.getLogger(__name__)


class Loader:
    """Loads and unloads versions.

    Args:
        source: where they come from.
        settings: of every runtime.
        assembler: makes of a runtime what takes calls.
        largest_model: most bytes that the files of a version may have together.
        memory: most bytes that the files of all loaded versions may have together, those of a swap counted twice;
            0 = any.
        spool: keeps the files of versions of which other processes hold copies; None = there are none.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        assembler: Assembler,
        telemetry: Telemetry,
        *,
        largest_model: int,
        memory: int = 0,
        spool: Spool | None = None,
    ) -> None:
        self._source = source
        self._settings = settings
        self._assembler = assembler
        self._tracer = telemetry.tracer
        self._largest_model = largest_model
        self._memory = memory
        self._spool = spool
        self._sizes: dict[Loaded, int] = {}
        self._reserved = 0
        self._loads = Counter(
            attributes.METRIC_MODEL_LOADS, "Attempts to load a version.", ["outcome"], registry=telemetry.registry
        )

    async def load(self, version: Version) -> Loaded:
        """A version that has run once.

        Raises:
            Invalid: it is not a model that can run here, or not what its source says of it.
            DataLoss: what arrived is not what the artifact lists.
            Exhausted: there is no room for it beside what is loaded.
            Unavailable and others: its files cannot be had now.
            OSError: they, or the cache, cannot be read or written.
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
                loaded = await self._load(version, span)
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
        self._sizes.pop(loaded, None)
        self._assembler.forget(loaded)
        if self._spool is not None and loaded.copied:
            await to_thread(self._spool.forget, loaded.key)

    async def tidy(self, desired: Desired) -> None:
        """Have the source forget what nobody needs any more."""
        await self._source.tidy(desired)

    async def _load(self, version: Version, span: trace.Span) -> Loaded:
        opened = await self._source.open(version)
        if opened.configuration is not None and opened.configuration.steps:
            composed = replace(opened.configuration, tracked=tracked(opened.configuration))
            return self._assembler.assemble(version, composed, None, trace.set_span_in_context(span))
        kind = await to_thread(plugins.load, runtimes, opened.runtime, Runtime)
        chosen = kind.select(list(opened.sizes))
        size = sum(opened.sizes[path] for path in chosen)
        if size > self._largest_model:
            raise Invalid(f"the model has {size} bytes; at most {self._largest_model} are loaded", reason="TOO_LARGE")
        span.set_attribute(attributes.BYTES, size)
        with self._room(size):
            data = await opened.read(chosen)
            runtime, configuration = await _given_up(
                asyncio.ensure_future(to_thread(self._start, kind, data, version, opened))
            )
            try:
                loaded = self._assembler.assemble(version, configuration, runtime, trace.set_span_in_context(span))
            except BaseException:
                await to_thread(runtime.close)
                raise
            self._sizes[loaded] = size
        try:
            await self._copy(loaded, kind, data, size)
        except BaseException:
            await asyncio.shield(self.unload(loaded))
            raise
        return loaded

    async def _copy(self, loaded: Loaded, kind: type[Runtime], data: Mapping[str, bytes], size: int) -> None:
        """Let other processes have copies of the version, if that is any use."""
        spool = self._spool
        if spool is None or size > spool.largest or not (kind.stateless and may_be_copied(loaded.configuration)):
            return
        try:
            await to_thread(spool.keep, loaded.key, data)
        except OSError as error:  # the version serves all the same
            LOG.warning("a version cannot be copied to other processes", extra={"error": str(error)})
            return
        loaded.copied = True

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Hold room for a version while it loads. Raises Exhausted."""
        taken = self._reserved + sum(self._sizes.values())
        if self._memory and taken + size > self._memory:
            raise Exhausted(
                f"the model has {size} bytes, and {taken} are loaded or being loaded; "
                f"all models together may have {self._memory}",
                reason="NO_MODEL_MEMORY",
            )
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def _start(
        self, kind: type[Runtime], data: Mapping[str, bytes], version: Version, opened: Opened
    ) -> tuple[Runtime, Configuration]:
        settings, configured = self._settings_for(version, opened), opened.configuration
        apart = configured is not None and configured.isolation is Isolation.PROCESS
        runtime = isolate(kind, data, settings) if apart else kind.load(data, settings)
        try:
            configuration = self._configured(version, opened, runtime)
            runtime = reshaped(runtime, configuration)
            with self._tracer.start_as_current_span(attributes.SPAN_WARM_UP, record_exception=False):
                self._warm_up(runtime, configuration, version, opened.trusted)
                configuration = self._tried(runtime, configuration, opened)
        except BaseException:
            runtime.close()
            raise
        return runtime, configuration

    def _warm_up(self, runtime: Runtime, configuration: Configuration, version: Version, trusted: bool) -> None:
        """Raises Invalid when the model cannot run."""
        if configuration.warmups:
            run_warmups(runtime, configuration)
            return
        if isinstance(runtime, CallRuntime) and runtime.sees_calls:  # programs may do anything with zeros
            return
        try:
            problem = warm_up(runtime)
        except Invalid as error:
            if not trusted:
                raise
            problem = error.message
        if problem:
            where = {"model": version.model, "version": version.number}
            LOG.warning("found no inputs to warm up with", extra={**where, "error": problem})

    def _tried(self, runtime: Runtime, configuration: Configuration, opened: Opened) -> Configuration:
        """With batches, where nobody has said anything of them and they pay."""
        said = opened.configuration
        if said is None or said.max_batch or configuration.max_batch < 2 or configuration.warmups:
            return configuration
        taken = configuration.dynamic or configuration.sequence or configuration.decoupled
        if taken or (isinstance(runtime, CallRuntime) and runtime.sees_calls):
            return configuration
        found = with_batches(runtime, configuration)
        if found.dynamic is not None:
            LOG.info("calls are put together: batches pay for this model", extra={"model": configuration.name})
        return found

    def _settings_for(self, version: Version, opened: Opened) -> Settings:
        found = replace(
            self._settings,
            version=str(version.number),
            configuration=opened.configuration,
            directory=opened.directory,
            trusted=opened.trusted,
        )
        configuration = opened.configuration
        if configuration is None:
            return found
        return replace(
            found,
            providers=configuration.providers or found.providers,
            threads=configuration.threads or found.threads,
            gpus=configuration.gpus,
        )

    def _configured(self, version: Version, opened: Opened, runtime: Runtime) -> Configuration:
        """How the loaded version runs. Raises Invalid."""
        if (known := runtime.completed or opened.configuration) is not None:
            configuration = complete(known, runtime.signature, runtime.platform)
        else:
            bare = unconfigured(version.model, version.format, runtime)
            configuration = replace(bare, tracked=tracked(bare))
        if version.signature is not None and (problem := contradiction(version.signature, runtime.signature)):
            raise Invalid(f"the file is not what the registry declares: {problem}", reason="SIGNATURE_MISMATCH")
        return configuration


async def _given_up(starting: "asyncio.Future[tuple[Runtime, Configuration]]") -> tuple[Runtime, Configuration]:
    """What starts in another thread, which nothing can stop: closed when it has started, if nobody waits any more."""
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_close)
        raise


def _close(started: "asyncio.Future[tuple[Runtime, Configuration]]") -> None:
    if not started.cancelled() and started.exception() is None:
        runtime, _ = started.result()
        runtime.close()
