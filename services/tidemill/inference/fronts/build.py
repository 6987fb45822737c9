"""Puts a front together."""

import asyncio
import logging
from dataclasses import asdict, dataclass
from typing import Any

from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.config import set_default
from tidemill.inference.assembly import Assembler
from tidemill.inference.config import InferenceConfig
from tidemill.inference.engine import Engine
from tidemill.inference.fronts import books
from tidemill.inference.fronts.mirror import Mirror
from tidemill.inference.fronts.relay import Relay
from tidemill.inference.fronts.servicer import FrontServicer
from tidemill.inference.fronts.spool import SpoolSource
from tidemill.inference.loader import Loader
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.metrics import Metrics
from tidemill.inference.protocols.oip.requests import Reader
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.protocols.oip.servicer import INFER, SERVICE
from tidemill.inference.protocols.oip.unary import Unary
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.scheduling import dynamic
from tidemill.inference.tracing import Tracing
from tidemill.rpc.app import observer, telemetry
from tidemill.rpc.server import Service, ThreadServer
from tidemill.telemetry.setup import Telemetry

ENVELOPE = 1 << 16
"""Bytes that a message may have beside its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a front is told when it begins.

    Args:
        config: the service's settings.
        address: of the first process, as `unix:<path>`.
        port, extra_ports: that all processes share.
        processes: how many share them.
    """

    config: InferenceConfig
    address: str
    port: int
    extra_ports: tuple[int, ...] = ()
    processes: int = 2


@dataclass(slots=True, kw_only=True)
class Front:
    """A front, listening or not yet.

    Args:
        mirror: its copies.
        tracing: which requests are recorded.
        logs: what is logged.
    """

    start: Start
    telemetry: Telemetry
    mirror: Mirror
    tracing: Tracing
    logs: LogSettings
    relay: Relay
    server: ThreadServer
    listening: bool = False

    async def listen(self) -> None:
        """Answer on the ports from now on. Raises Unavailable."""
        await self.server.start(self.start.config.host, self.start.port)
        await self.server.set_serving(True)
        self.listening = True

    def report(self) -> dict[str, Any]:
        """What it has counted: all metrics, and the statistics of each copy, by key."""
        statistics = {key: asdict(loaded.statistics.snapshot()) for key, loaded in self.mirror.copies().items()}
        return {"metrics": books.read(self.telemetry.registry), "statistics": statistics}

    async def close(self) -> None:
        """Finish what is in work, and free everything."""
        if self.listening:
            await self.server.stop(self.start.config.drain_seconds)
        await self.mirror.close()
        self.relay.close()
        await asyncio.to_thread(self.telemetry.shutdown)


def build(start: Start) -> Front:
    """A front that does not listen yet."""
    set_default("ORT_DISABLE_TELEMETRY", "1")
    config = start.config
    signals = telemetry("inference", config)
    loader = Loader(
        SpoolSource(),
        Settings(providers=tuple((name, {}) for name in config.providers), threads=config.intra_op_threads),
        Assembler(signals.tracer, Metrics(signals.registry), choices=(dynamic.choose,)),
        signals,
        largest_model=config.max_model_bytes,
    )
    mirror = Mirror(loader.load, loader.unload)
    relay = Relay(start.address, config.max_message_bytes + ENVELOPE)
    tracing = Tracing(signals.tracer, config.trace_sample)
    unary = Unary(
        Reader(None, config.max_message_bytes),
        Writer(config.mirror_encoding),
        Engine(signals.tracer, config.max_message_bytes),
        tracing,
    )
    servicer = FrontServicer(mirror, unary, relay, tracing)
    server = ThreadServer(
        [Service.of(pg.add_GRPCInferenceServiceServicer_to_server, servicer, SERVICE)],
        observer(config, signals),
        threads=config.threads,
        running=config.computing,
        brief={INFER: servicer.brief} if config.one_a_core else {},
        max_message=config.max_message_bytes + ENVELOPE,
        calls=config.max_waiting,
        silence=config.stream_idle_seconds,
        extra_ports=start.extra_ports,
        processes=start.processes,
        first=False,
        any_health=True,
    )
    return Front(
        start=start,
        telemetry=signals,
        mirror=mirror,
        tracing=tracing,
        logs=LogSettings(logging.getLogger("tidemill"), logging.getLogger().handlers),
        relay=relay,
        server=server,
    )
