"""The first process's side: keeps the fronts in step with what it serves, and their books with its own."""

import asyncio
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as LateError
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric

from tidemill import records
from tidemill.clock import Clock
from tidemill.inference.config import InferenceConfig
from tidemill.inference.control import ModelControl
from tidemill.inference.fronts import books
from tidemill.inference.fronts.build import Start
from tidemill.inference.fronts.keeper import Keeper
from tidemill.inference.fronts.picture import picture
from tidemill.inference.fronts.spool import Spool
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.repository import Repository
from tidemill.inference.statistics import Snapshot
from tidemill.inference.tracing import Tracing

LOG = logging.getLogger(__name__)
SOCKET = "first.sock"
PREFIX = "tidemill-fronts-"
LONGEST = 100
"""Bytes of a socket's path; systems allow 104 or more."""
PATIENCE = 2.0
"""Seconds that a scrape or a look at statistics waits for the fronts."""
REMEMBERED = 2.0
"""Seconds of which the counts are lost at most when a front dies."""


class Fronts:
    """The fronts of a service, none or several.

    Args:
        config: the service's settings.
        repository: what is served.
        registry: metrics of this process.
        ports: the port that is shared, and further ones; known once the server listens.
        tracing: which requests are recorded, in all processes.
        logs: what is logged, in all processes.
        clock: times pauses.
    """

    def __init__(
        self,
        config: InferenceConfig,
        repository: Repository,
        registry: CollectorRegistry,
        ports: Callable[[], tuple[int, Sequence[int]]],
        tracing: Tracing,
        logs: LogSettings,
        clock: Clock,
    ) -> None:
        self._config = config
        self._repository = repository
        self._registry = registry
        self._ports = ports
        self._tracing = tracing
        tracing.updated = self._traced
        self._logs = logs
        logs.updated = self._logged
        self.processes = config.processes
        self._folder = _folder() if self.processes > 1 else None
        # Removed at the latest when this is forgotten: what is built is not always started.
        self._removal = weakref.finalize(self, shutil.rmtree, self._folder or "", ignore_errors=True)
        self.spool = Spool(self._folder / "spool", config.front_model_bytes) if self._folder else None
        self._keeper = Keeper(self.processes - 1, self._start, clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock = clock
        self._changed = asyncio.Event()
        self._shown = asyncio.Lock()

    @property
    def address(self) -> str:
        """Where fronts reach this process; nobody else can open it."""
        return f"unix:{self._folder / SOCKET}" if self._folder else ""

    async def run(self) -> None:
        """Keep the fronts running, for ever."""
        if self.spool is None:
            await asyncio.Event().wait()
        self._loop = asyncio.get_running_loop()
        await self.show()
        await asyncio.gather(self._keeper.run(), self._follow(), self._remember())

    def changed(self) -> None:
        """What is served has changed. Called on the loop."""
        self._changed.set()

    async def show(self) -> None:
        """Tell the fronts what is served now; from the return on, none answers with anything else."""
        if self.spool is None:
            return
        async with self._shown:
            self._changed.clear()
            models = self._repository.models
            shown = picture(models, self.spool, self._repository.default)
            await self._keeper.show(shown)
            self._keeper.forget({copy.key for copy in shown.copies})

    async def ask(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answers of all fronts to an order."""
        return await self._keeper.ask(document)

    async def withdraw(self) -> None:
        """Let the fronts say that they will go, and answer on."""
        await self._keeper.withdraw()

    async def close(self) -> None:
        """Let the fronts finish what they have, and end them."""
        await self._keeper.close(self._config.drain_seconds)

    def remove(self) -> None:
        """Remove what was kept for them."""
        self._removal()

    def sync(self) -> None:
        """`show`, for any other thread than the loop's."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self.show(), self._loop).result()

    def collect(self) -> Iterable[Metric]:
        """The metrics of all processes. Called from any other thread than the loop's."""
        return books.merged(self._registry.collect(), [report["metrics"] for report in self._reports()])

    def snapshots(self) -> dict[str, Snapshot]:
        """The books of all copies, by the key of the version. Called from any other thread than the loop's."""
        found: dict[str, Snapshot] = {}
        for report in self._reports():
            for key, values in report["statistics"].items():
                snapshot = records.decode(Snapshot, json.dumps(values).encode())
                found.setdefault(key, Snapshot()).add(snapshot)
        return found

    def _reports(self) -> list[dict[str, Any]]:
        if self._loop is None:
            return []
        asked = asyncio.run_coroutine_threadsafe(self._keeper.reports(), self._loop)
        try:
            return asked.result(PATIENCE)
        except LateError:
            LOG.warning("the fronts do not tell what they have counted")
            return self._keeper.known()

    def _traced(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Trace settings have changed. Called from any other thread than the loop's."""
        self._tell({"trace": [[model, {name: list(values) for name, values in changes.items()}]]})

    def _logged(self, changes: Mapping[str, bool | int | str]) -> None:
        """Log settings have changed. Called from any other thread than the loop's."""
        self._tell({"log": dict(changes)})

    def _tell(self, order: Mapping[str, Any]) -> None:
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._keeper.ask(order), self._loop).result()

    async def _remember(self) -> None:
        """Know what fronts have counted before they end."""
        while True:
            await self._clock.sleep(REMEMBERED)
            await self._keeper.reports()

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self.show()

    def _start(self) -> Mapping[str, Any]:
        port, extra_ports = self._ports()
        start = Start(
            config=self._config,
            address=self.address,
            port=port,
            extra_ports=tuple(extra_ports),
            processes=self.processes,
        )
        document: dict[str, Any] = json.loads(records.encode(start))
        trace = [[model, changes] for model, changes in self._tracing.changes.items()]
        return {**document, "trace": trace, "log": self._logs.changes}


def _folder() -> Path:
    """A new directory that nobody else can read, in which a socket's path is not too long for the system."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    if len(str(folder / SOCKET).encode()) <= LONGEST:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))


class Everywhere:
    """Model control that holds for all processes: see `ModelControl`.

    Args:
        inner: does it in the first process.
        fronts: the others.
    """

    def __init__(self, inner: ModelControl, fronts: Fronts) -> None:
        self._inner = inner
        self._fronts = fronts

    def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        """Load a model; on return no process answers with what it has replaced."""
        self._inner.load(model, config, files, version)
        self._fronts.sync()

    def unload(self, model: str, dependents: bool, version: str = "") -> None:
        """Unload a model; on return no process answers with it."""
        try:
            self._inner.unload(model, dependents, version)
        finally:
            self._fronts.sync()
