"""Ensembles of models that are Python functions, without a server around them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from opentelemetry.context import Context

from tidemill.inference.assembly import Assembler
from tidemill.inference.calls import Array, Call
from tidemill.inference.configuration import Configuration, Step, TensorConfiguration
from tidemill.inference.desired import Version
from tidemill.inference.engine import Engine
from tidemill.inference.loaded import Loaded
from tidemill.inference.metrics import Metrics
from tidemill.inference.repository import Model, Repository, State, Status
from tidemill.inference.responses import ResponseCache
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.scheduling.ensemble import Ensembles
from tidemill.inference.signatures import Signature
from tidemill.telemetry.setup import setup
from tidemill.tensors.dtypes import DataType

Function = Callable[..., Mapping[str, Array]]


def tensors(*names: str, kind: DataType = DataType.FP32, dims: tuple[int, ...] = (-1, 2), **more: Any) -> Any:
    """Tensors of a configuration; "x?" is an optional one."""
    return tuple(
        TensorConfiguration(name=name.rstrip("?"), datatype=kind, dims=dims, optional=name.endswith("?"), **more)
        for name in names
    )


def call(*outputs: str, **inputs: Any) -> Call:
    """A call with these inputs, FP32 each."""
    return Call(inputs={name: np.array(value, np.float32) for name, value in inputs.items()}, outputs=outputs)


class FunctionRuntime(Runtime):
    """A model that is a function of its inputs by name."""

    platform = "function"

    def __init__(self, configuration: Configuration, function: Function) -> None:
        self._configuration = configuration
        self._function = function

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(paths)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        raise NotImplementedError

    @property
    def signature(self) -> Signature:
        return self._configuration.signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        found = self._function(**inputs)
        return [found[name] for name in outputs]


class Models:
    """A repository of such models and ensembles of them."""

    def __init__(self, *, threads: int = 4, largest_answer: int = 1 << 20, choices: Any = ()) -> None:
        telemetry = setup("test")
        self.telemetry = telemetry
        self.repository = Repository("champion")
        self.engine = Engine(telemetry.tracer, largest_answer)
        self.ensembles = Ensembles(self.repository, self.engine, telemetry.tracer, threads)
        self.assembler = Assembler(
            telemetry.tracer,
            Metrics(telemetry.registry),
            choices,
            ResponseCache(1 << 20),
            compose=self.ensembles.compose,
        )
        self._models: dict[str, dict[int, Status]] = {}

    def add(
        self,
        name: str,
        function: Function,
        inputs: Any = None,
        outputs: Any = None,
        *,
        number: int = 1,
        **more: Any,
    ) -> Loaded:
        """A model that is READY."""
        configuration = Configuration(
            name=name,
            backend="function",
            inputs=tensors("x") if inputs is None else inputs,
            outputs=tensors("y") if outputs is None else outputs,
            **more,
        )
        return self._put(name, number, configuration, FunctionRuntime(configuration, function))

    def ensemble(self, name: str, steps: Sequence[Step], inputs: Any, outputs: Any, **more: Any) -> Loaded:
        """An ensemble that is READY. Raises what its load raises."""
        configuration = Configuration(
            name=name, backend="ensemble", steps=tuple(steps), inputs=inputs, outputs=outputs, **more
        )
        return self._put(name, 1, configuration, None)

    def drop(self, name: str) -> None:
        """Unload a model."""
        for status in self._models.pop(name).values():
            if status.loaded is not None:
                status.loaded.retire(status.loaded.close)
        self.repository.publish({model: Model(versions) for model, versions in self._models.items()})

    def infer(self, name: str, made: Call) -> Mapping[str, Array]:
        """What a request is answered. Raises TidemillError."""
        with self.repository.acquire(name, "") as loaded:
            return self.engine.infer(loaded, made).outputs

    def close(self) -> None:
        """End everything."""
        for name in list(self._models):
            self.drop(name)
        self.ensembles.close()

    def _put(self, name: str, number: int, configuration: Configuration, runtime: Runtime | None) -> Loaded:
        version = Version(model=name, number=number, format="function", artifact="a" * 64)
        loaded = self.assembler.assemble(version, configuration, runtime, Context())
        before = self._models.get(name, {}).get(number)
        self._models.setdefault(name, {})[number] = Status(State.READY, loaded=loaded)
        self.repository.publish({model: Model(versions) for model, versions in self._models.items()})
        if before is not None and before.loaded is not None:
            before.loaded.retire(before.loaded.close)
        return loaded
