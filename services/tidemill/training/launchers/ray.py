"""Workers on the machines of a Ray cluster that is there already."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tidemill import config, names
from tidemill.errors import Unavailable, invalid
from tidemill.training.launchers._ray.connection import Connection, Lost
from tidemill.training.launchers._ray.lines import Lines
from tidemill.training.launchers.base import Launcher, Output, Process, Settings

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_PASSED = ("TIDEMILL_WORKER_", "TIDEMILL_LOG_")
"""Variables of this process that workers get, wherever they run."""
_AGAIN = 0.5
"""Seconds between two tries to reach the cluster."""
_KILLED = 15.0
"""Seconds in which a killed worker must be gone; its node is out of reach then, and it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of this launcher."""

    address: str = config.parameter("host:port of the cluster's head; auto = what RAY_ADDRESS says", "auto")
    namespace: str = config.parameter("what the cluster knows this service's workers by", "tidemill")
    cpus: float = config.parameter("CPUs reserved for a worker", 1.0, low=0, high=4096)
    gpus: float = config.parameter("GPUs reserved for a worker", 0.0, low=0, high=64)
    strategy: str = config.parameter(f"how workers are placed on nodes: {', '.join(STRATEGIES)}", "PACK")
    wait_seconds: float = config.parameter("longest wait of a worker for its place", 300.0, low=1, high=86400)
    connect_seconds: float = config.parameter("longest time to reach the cluster", 30.0, low=1, high=600)
    service_host: str = config.parameter("host at which workers reach this service; none = where it listens", "")
    python: str = config.parameter("Python with Ray, of the cluster's versions; none = this one", "")
    worker_python: str = config.parameter("Python of workers on the nodes; none = the one that Ray runs there", "")
    scratch: str = config.parameter("directory on the nodes for workers' files; none = that for temporary files", "")

    def __post_init__(self) -> None:
        names.check(self.namespace)
        if self.strategy not in STRATEGIES:
            raise invalid("strategy", f"must be one of {', '.join(STRATEGIES)}")
        if not self.address:
            raise invalid("address", "must not be empty")


class Ray(Launcher):
    """Starts each worker beside an agent, a detached actor in a placement group of its job.

    A bridge, a process of its own, speaks to Ray; see `_ray/bridge.py` for the reason. It is started when it is needed
    first, and anew when it is lost.
    """

    Config = Config

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = config.from_texts(Config, settings.options, "launcher_options")
        self._connecting = asyncio.Lock()
        self._connection: Connection | None = None
        self._following: set[asyncio.Future[int]] = set()

    async def launch(self, job: str, handle: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker, once the cluster has a place for it; what it waits for is handed on as lines."""
        name = _name(job, handle)
        lines = Lines(output, 0)
        try:
            started = await (await self.connection()).call(
                "launch",
                lines.take,
                name=name,
                job=job,
                command=self._settings.command,
                environment={**self._variables(), **self._reachable(environment)},
            )
        except Lost as lost:
            raise self._unreachable(lost) from lost
        return RayProcess(self, name, started["pid"], self._settings, lines)

    async def adopt(self, job: str, handle: str, output: Output, position: int) -> Process | None:
        """Find the worker's agent by its name."""
        name, lines = _name(job, handle), Lines(output, position)
        found = await self.ask("adopt", lines.take, name=name, position=position)
        if found is None:
            lines.end()
            return None
        return RayProcess(self, name, found["pid"], self._settings, lines)

    async def clean(self, job: str, *, paused: bool = False) -> None:
        """End a job's agents, each of which deletes its worker's files, and give back its placement groups.

        Nothing stays of a paused job: its workers may go on on other nodes.

        Without a cluster nothing is done: agents that are abandoned end by themselves.
        """
        with suppress(Unavailable):
            await self.ask("clean", job=names.check(job))

    async def sweep(self, jobs: Collection[str]) -> None:
        """End the agents of all jobs but these; without a cluster there is nothing that could be ended."""
        with suppress(Unavailable):
            await self.ask("sweep", jobs=list(jobs))

    async def close(self) -> None:
        """End the bridge. The workers go on, for as long as they may without anybody who looks after them."""
        for following in self._following:
            following.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        async with self._connecting:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    def follow(self, process: Coroutine[Any, Any, int]) -> "asyncio.Future[int]":
        """Have a worker followed until it has ended, or `close`."""
        following = asyncio.ensure_future(process)
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return following

    async def connection(self) -> Connection:
        """The bridge, started if need be. Raises as `Connection.open` does."""
        async with self._connecting:
            if self._connection is None or not self._connection.is_open:
                if self._connection is not None:
                    await self._connection.close()
                    self._connection = None
                told = {
                    **asdict(self._config),
                    "abandoned": self._settings.abandoned,
                    "output_bytes": self._settings.output_bytes,
                }
                self._connection = await Connection.open(self._config.python, told, self._config.connect_seconds)
            return self._connection

    async def ask(self, op: str, part: Callable[[dict[str, Any]], None] | None = None, **arguments: Any) -> Any:
        """Have the bridge carry out a request.

        Raises:
            Unavailable: reason LAUNCH_FAILED, also when the bridge is lost meanwhile.
        """
        try:
            return await (await self.connection()).call(op, part, **arguments)
        except Lost as lost:
            raise self._unreachable(lost) from lost

    def _unreachable(self, lost: Lost) -> Unavailable:
        return Unavailable(f"the Ray cluster at {self._config.address} is lost: {lost}", reason="LAUNCH_FAILED")

    def _variables(self) -> dict[str, str]:
        own = config.environ()
        threads = str(self._settings.threads)
        return {
            **{name: value for name, value in own.items() if name.startswith(_PASSED)},
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TIDEMILL_WORKER_THREADS": threads,
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "PYTHONUNBUFFERED": "1",
        }

    def _reachable(self, environment: Mapping[str, str]) -> dict[str, str]:
        """`environment` with the host at which this service is reached from the nodes."""
        reached = dict(environment)
        address = reached.get("TIDEMILL_TRAINING_ADDRESS", "")
        if self._config.service_host and address:
            host = self._config.service_host
            port = address.rpartition(":")[2]
            reached["TIDEMILL_TRAINING_ADDRESS"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return reached


class RayProcess(Process):
    """A worker on a node of the cluster; followed for as long as it runs, over bridges that come and go."""

    def __init__(self, launcher: Ray, name: str, pid: int, settings: Settings, lines: Lines) -> None:
        self._launcher = launcher
        self._name = name
        self._pid = pid
        self._settings = settings
        self._lines = lines
        self._ended = launcher.follow(self._follow())

    @property
    def pid(self) -> int:
        """Its process id, on its node."""
        return self._pid

    async def wait(self) -> int:
        """Its exit status; -9 with a line that says why when its node has died or is out of reach for too long."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float | None = None) -> None:
        """End it and everything it has started."""
        patience = self._settings.grace if grace is None else grace
        if not self._ended.done():
            with suppress(Unavailable):
                await self._launcher.ask("stop", name=self._name, grace=patience)
            done, _ = await asyncio.wait({self._ended}, timeout=patience + _KILLED)
            if not done:
                await self.forget()
        await self.wait()

    async def forget(self) -> None:
        """End its agent."""
        with suppress(Unavailable):
            await self._launcher.ask("forget", name=self._name)

    async def _follow(self) -> int:
        while True:
            try:
                connection = await self._launcher.connection()
                ended = await connection.call(
                    "follow", self._lines.take, name=self._name, position=self._lines.position
                )
                return self._end(ended["status"], ended["reason"])
            except (Lost, Unavailable):
                gone = await self._find_again()
            if gone:
                return self._end(-9, gone)

    async def _find_again(self) -> str:
        """Reach the worker over another bridge; why it counts as ended if that fails."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self._settings.abandoned
        while clock.time() < deadline:
            await asyncio.sleep(_AGAIN)
            with suppress(Unavailable):
                position = self._lines.position
                found = await self._launcher.ask("adopt", self._lines.take, name=self._name, position=position)
                return "" if found else "it has ended while the Ray cluster was out of reach"
        return f"the Ray cluster has been out of reach for {self._settings.abandoned:g} s"

    def _end(self, status: int, reason: str) -> int:
        self._lines.end()
        if reason:
            self._lines.tell(reason)
        return status


def _name(job: str, handle: str) -> str:
    return f"{names.check(job)}/{names.check(handle)}"
