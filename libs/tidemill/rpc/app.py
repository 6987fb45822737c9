"""A service process: server, operations port, health checks and background tasks, started and drained together."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tidemill import errors
from tidemill.auth.policy import AllowAll, Authorizer, LoopbackOnly
from tidemill.clock import Clock, SystemClock
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.health import Check, HealthMonitor
from tidemill.rpc.observe import Observer
from tidemill.rpc.server import Server
from tidemill.telemetry import logs
from tidemill.telemetry.ops import Metrics, OpsServer
from tidemill.telemetry.setup import Telemetry, setup

LOG = logging.getLogger(__name__)
Hook = Callable[[], Awaitable[None]]


def authorizer(config: ServerConfig) -> Authorizer:
    """The policy that `config` asks for."""
    return AllowAll() if config.allow_insecure_bind else LoopbackOnly()


def telemetry(name: str, config: ServerConfig) -> Telemetry:
    """The telemetry that `config` asks for, of the service `name`."""
    return setup(name, traces=config.traces, sample=config.trace_sample, instance=config.advertise)


def observer(config: ServerConfig, telemetry: Telemetry) -> Observer:
    """The observer of a server of this service."""
    return Observer(telemetry, authorizer(config))


class App:
    """One service.

    Args:
        name: for logs and traces.
        config: its settings.
        telemetry: its telemetry; ended by `stop`.
        server: its gRPC server.
        checks: dependencies by name; the service is SERVING while all pass.
        starters: awaited in order before the server listens.
        tasks: run beside the server until it stops; one that ends or raises ends the process.
        withdrawers: awaited in order when the process stops, before it lingers: others learn that it will go, and it
            still answers.
        stoppers: awaited in order after that, before the server drains: withdraw, cancel, close waiting.
        closers: awaited in order after the server has stopped, also when a starter has failed: they free what is there,
            the last that was taken first.
        metrics: what the operations port shows; the telemetry's registry when left out.
    """

    def __init__(
        self,
        name: str,
        config: ServerConfig,
        telemetry: Telemetry,
        server: Server,
        *,
        checks: Mapping[str, Check] | None = None,
        starters: Sequence[Hook] = (),
        tasks: Sequence[Hook] = (),
        withdrawers: Sequence[Hook] = (),
        stoppers: Sequence[Hook] = (),
        closers: Sequence[Hook] = (),
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.telemetry = telemetry
        self.server = server
        self.port = 0
        self.ops_port = 0
        self.failed: asyncio.Future[None] | None = None
        self._clock = clock or SystemClock()
        self._monitor = HealthMonitor(checks or {}, server.set_serving, telemetry, self._clock)
        self._ops = OpsServer(metrics or telemetry.registry, lambda: self._monitor.ready)
        self._starters, self._tasks = list(starters), list(tasks)
        self._withdrawers = list(withdrawers)
        self._stoppers, self._closers = list(stoppers), list(closers)
        self._running: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def address(self) -> str:
        """Where others reach the gRPC server."""
        return self.config.advertise or f"{self.config.host}:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether every dependency answered when last asked."""
        return self._monitor.ready

    async def start(self) -> None:
        """Start everything; on return the ports are open. What was started is closed again when that fails.

        Raises:
            Unavailable: with reason PORT_IN_USE, when a port is taken.
        """
        try:
            await self._start()
        except BaseException:
            await self._undo()
            raise

    async def _start(self) -> None:
        self.failed = asyncio.get_running_loop().create_future()
        for starter in self._starters:
            await starter()
        self.port = await self.server.start(self.config.host, self.config.port)
        try:
            self.ops_port = self._ops.start(self.config.host, self.config.ops_port)
        except OSError as error:
            raise errors.Unavailable(
                f"cannot listen on {self.config.host}:{self.config.ops_port}: {error.strerror}", reason="PORT_IN_USE"
            ) from error
        for task in (self._monitor.run, *self._tasks):
            running = asyncio.ensure_future(task())
            running.add_done_callback(self._ended)
            self._running.append(running)
        LOG.info("listening", extra={"grpc": self.port, "ops": self.ops_port})
        if self.config.announce_file:
            _announce(Path(self.config.announce_file), {"grpc": self.port, "ops": self.ops_port, "pid": os.getpid()})

    async def _undo(self) -> None:
        """Free what a start that has failed had taken, the last first; what goes wrong meanwhile is only logged."""
        self._stopped = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self.ops_port:
            self._ops.stop()
        if self.port:
            await self.server.stop(0)
        for closer in self._closers:
            try:
                await closer()
            except Exception:
                LOG.exception("something could not be closed after a start that has failed")
        await asyncio.to_thread(self.telemetry.shutdown)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or self.failed is None or self.failed.done():
            return
        self.failed.set_exception(task.exception() or RuntimeError("a background task ended"))

    async def stop(self, grace: float | None = None) -> None:
        """Linger, drain and free everything; nothing after a start that has failed, which has freed it."""
        if self._stopped:
            return
        await self._monitor.withdraw()
        for withdrawer in self._withdrawers:
            await withdrawer()
        if self.config.linger_seconds:
            await self._clock.sleep(self.config.linger_seconds)
        for stopper in self._stoppers:
            await stopper()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.server.stop(self.config.drain_seconds if grace is None else grace)
        self._ops.stop()
        for closer in self._closers:
            await closer()
        await asyncio.to_thread(self.telemetry.shutdown)
        if self.failed is not None and self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # seen: it was logged or raised by whoever waited


def _announce(path: Path, ports: Mapping[str, int]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(ports))
    temporary.replace(path)


def run(name: str, config: ServerConfig, build: Callable[[], App]) -> int:
    """Run the service that `build` makes until SIGTERM or SIGINT; the exit status of the process.

    A setting or port that is wrong gives one line and status 2, not a traceback.
    """
    logs.configure(name, config.log_level, config.log_style)
    return asyncio.run(_run(build))


async def _run(build: Callable[[], App]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        app = build()
        await app.start()
    except errors.TidemillError as error:
        LOG.error("cannot start: %s", error.message, extra={"reason": error.reason})
        return 2
    assert app.failed is not None
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((stopped, app.failed), return_when=asyncio.FIRST_COMPLETED)
    crashed = app.failed.done()
    if crashed:
        LOG.critical("a background task failed: the process ends", exc_info=app.failed.exception())
    else:
        LOG.info("stopping")
    stopped.cancel()
    await app.stop()
    return 1 if crashed else 0
