"""Versions that load when the test says so."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

from opentelemetry.context import Context

from tidemill.inference.assembly import Assembler, unconfigured
from tidemill.inference.calls import Array
from tidemill.inference.desired import Desired, Version
from tidemill.inference.loaded import Loaded
from tidemill.inference.metrics import Metrics
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.telemetry.setup import Telemetry, setup
from tidemill.tensors.dtypes import DataType

SIGNATURE = Signature(
    (TensorSpec("x", DataType.FP32, (-1,)),),
    (TensorSpec("y", DataType.FP32, (-1,)),),
)


class EchoRuntime(Runtime):
    """Gives back what it gets."""

    platform = "echo"

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(paths)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        return cls()

    @property
    def signature(self) -> Signature:
        return SIGNATURE

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return [inputs["x"]] * len(outputs)


def version(number: int, model: str = "m", artifact: str = "a") -> Version:
    return Version(model=model, number=number, format="echo", artifact=artifact * 64)


def desired(aliases: Mapping[str, int], *, model: str = "m", artifact: str = "a") -> Desired:
    """What shall be served of one model."""
    versions = [version(number, model, artifact) for number in set(aliases.values())]
    return Desired.of({model: aliases}, versions)


def assembler(telemetry: Telemetry | None = None) -> Assembler:
    """Puts versions together."""
    telemetry = telemetry or setup("test")
    return Assembler(telemetry.tracer, Metrics(telemetry.registry))


def loaded(version: Version, runtime: Runtime | None = None, by: Assembler | None = None) -> Loaded:
    """A version in a runtime."""
    runtime = runtime or EchoRuntime()
    configuration = unconfigured(version.model, version.format, runtime)
    return (by or assembler()).assemble(version, configuration, runtime, Context())


class FakeLoads:
    """Loads a version when it is let, with what the test has put there."""

    def __init__(self) -> None:
        self.results: dict[int, list[Exception | None]] = {}
        self.held: dict[int, asyncio.Event] = {}
        self.attempts: list[int] = []
        self.unloaded: list[int] = []

    def hold(self, number: int) -> asyncio.Event:
        """Let loads of this number wait until the event is set."""
        return self.held.setdefault(number, asyncio.Event())

    async def load(self, version: Version) -> Loaded:
        self.attempts.append(version.number)
        if version.number in self.held:
            await self.held[version.number].wait()
        results = self.results.get(version.number, [])
        problem = results.pop(0) if results else None
        if problem is not None:
            raise problem
        return loaded(version)

    async def unload(self, loaded: Loaded) -> None:
        self.unloaded.append(loaded.version.number)
