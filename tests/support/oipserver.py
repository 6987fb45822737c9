"""The Open Inference Protocol on a real server, over models that a test has made."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.auth.policy import AllowAll
from tidemill.inference.assembly import Assembler, Choice
from tidemill.inference.configuration import Configuration
from tidemill.inference.control import ModelControl
from tidemill.inference.desired import Version
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.metrics import Metrics
from tidemill.inference.protocols.oip.servicer import INFER, SERVICE, Identity, Limits, OipServicer
from tidemill.inference.repository import Model, Repository, State, Status
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.sharedmemory.cudart import Cuda, find
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.tracing import Tracing
from tidemill.rpc.observe import Observer
from tidemill.rpc.server import Service, ThreadServer
from tidemill.rpc.shortcut import Brief
from tidemill.telemetry.setup import setup

Versions = Mapping[tuple[str, int], tuple[Configuration, Runtime]]


@dataclass
class OipServer:
    """A running server.

    Args:
        stub: calls it.
        address: where it is.
        loaded: its versions.
        repository: its models.
        regions: its shared memory.
        spans: what it has recorded.
        logger: whose level clients set.
    """

    stub: Any
    address: str
    loaded: Mapping[tuple[str, int], Loaded]
    repository: Repository
    regions: Regions
    spans: InMemorySpanExporter
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("tests.oip"))

    @property
    def unused(self) -> bool:
        """Whether nothing uses a version now."""
        return not any(loaded._users for loaded in self.loaded.values())


@contextmanager
def oip_server(
    versions: Versions,
    *,
    choices: tuple[Choice, ...] = (),
    control: ModelControl | None = None,
    share: bool = False,
    cuda: Callable[[], Cuda | None] = find,
    sample: float = 1.0,
    others: Mapping[str, Model] | None = None,
    threads: int = 8,
    plain: bool = True,
    **limits: Any,
) -> Iterator[OipServer]:
    """Serve these versions.

    Args:
        versions: configuration and runtime, by model and number.
        choices: of schedulers.
        control: loads and unloads.
        share: whether clients may share memory.
        cuda: finds CUDA.
        sample: part of the requests that are recorded.
        others: further models, that are not loaded.
        threads: calls in work at a time.
        plain: whether plain requests are read as such; else all go the ordinary way.
        limits: those of `Limits`.
    """
    signals = setup("test", sample=sample)
    spans = InMemorySpanExporter()
    signals.provider.add_span_processor(SimpleSpanProcessor(spans))
    assembler = Assembler(signals.tracer, Metrics(signals.registry), choices=choices)
    loaded = {
        (model, number): assembler.assemble(
            Version(model=model, number=number, format="test", artifact="a" * 64), configuration, runtime, Context()
        )
        for (model, number), (configuration, runtime) in versions.items()
    }
    repository = Repository("champion")
    models: dict[str, dict[int, Status]] = {}
    for (model, number), one in loaded.items():
        models.setdefault(model, {})[number] = Status(State.READY, loaded=one)
    repository.publish({**{name: Model(found) for name, found in models.items()}, **(others or {})})
    logger = logging.getLogger("tests.oip")
    logs = LogSettings(logger, [])
    regions = Regions()
    allowed = Limits(**{"largest": 1 << 20, "streams": 4, **limits})
    servicer = OipServicer(
        repository,
        Engine(signals.tracer, allowed.largest),
        Identity("tidemill", "0"),
        lambda: True,
        tracing=Tracing(signals.tracer, sample),
        logs=logs,
        limits=allowed,
        control=control,
        regions=regions if share else None,
        cuda=cuda,
    )
    server = ThreadServer(
        [Service.of(pg.add_GRPCInferenceServiceServicer_to_server, servicer, SERVICE)],
        Observer(signals, AllowAll()),
        threads=threads,
        max_message=8 << 20,
        calls=256,
        brief={INFER: servicer.brief if plain else Brief(servicer.brief.is_brief)},
    )
    address = f"127.0.0.1:{asyncio.run(server.start('127.0.0.1', 0))}"
    try:
        with grpc.insecure_channel(address) as channel:
            yield OipServer(pg.GRPCInferenceServiceStub(channel), address, loaded, repository, regions, spans, logger)
    finally:
        asyncio.run(server.stop(1))
        for one in loaded.values():
            one.close()
        regions.close()
        logs.close()
        signals.shutdown()
