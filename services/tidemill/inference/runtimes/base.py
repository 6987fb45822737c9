"""The interface of runtimes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeAlias

from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.configuration import Configuration
from tidemill.inference.signatures import Signature
from tidemill.inference.statistics import Times

Provider: TypeAlias = tuple[str, Mapping[str, str]]
Invoke: TypeAlias = Callable[[str, str, Call, Receive], None]
"""(model, version or "", call, receive): have another model of this server run; see `Scheduler.submit`."""


class ModelMetrics(Protocol):
    """Metrics that models define themselves. Safe to use from any thread."""

    def define(self, owner: object, name: str, description: str, kind: str) -> None:
        """A family of metrics; `kind` is "counter", "gauge" or "histogram".

        Raises:
            Invalid: the name is none, or is another kind of metric already.
            Exhausted: the owner has too many.
        """

    def series(self, name: str, labels: Mapping[str, str], buckets: Sequence[float]) -> None:
        """One metric of a family. Raises Invalid, Exhausted."""

    def record(self, name: str, labels: Mapping[str, str], operation: str, value: float) -> None:
        """Change a metric: "increment" it, "set" it, or have it "observe" a value. Raises Invalid."""

    def value(self, name: str, labels: Mapping[str, str]) -> float:
        """What a counter or gauge says now. Raises Invalid."""

    def forget(self, owner: object) -> None:
        """The owner is gone, and with it the families that nobody else has defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a version is to be loaded: the server's settings, and what the version's configuration makes of them.

    Args:
        providers: execution providers in order of preference, by the names of ONNX Runtime, with their options; other
            runtimes may ignore them.
        threads: threads inside of one run.
        version: number of the version; "" when it does not matter.
        configuration: of the version; None when there is none but the model file.
        directory: the version's own directory in the operator's repository, for runtimes that need their files as
            files; None for models from elsewhere. What lies there is trusted.
        trusted: whether the files come from the operator, or from our own export: only then may they hold code.
        invoke: has other models run, for models that call models.
        gpus: devices to run on; empty = the CPU.
        metrics: where metrics of models go that define some.
    """

    providers: tuple[Provider, ...] = (("CPUExecutionProvider", {}),)
    threads: int = 1
    version: str = ""
    configuration: Configuration | None = None
    directory: Path | None = None
    trusted: bool = False
    invoke: Invoke | None = None
    gpus: tuple[int, ...] = ()
    metrics: ModelMetrics | None = None


class Runtime(ABC):
    """One model version, loaded. `run` is called from several threads at a time.

    Arrays have the type that `DataType.numpy` says: BF16 is widened to float32, BYTES are object arrays of `bytes`.
    """

    platform: ClassVar[str]
    """Kind of model and runtime, as clients of the Open Inference Protocol know it."""
    stateless: ClassVar[bool] = False
    """Whether copies in several processes answer like one, and loading a copy is cheap enough to have one in each."""

    @classmethod
    @abstractmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """Those files of an artifact that `load` needs.

        Raises:
            Invalid: they do not make a model of this format.
        """

    @classmethod
    @abstractmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """The model in these bytes, by path. Reads no file and follows no reference out of the bytes.

        Raises:
            Invalid: they are not a model that this runtime can run, now or ever.
        """

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Return when models of this kind can run with these settings of the server, as far as settings tell.

        Raises:
            Invalid: not one can.
        """
        return

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """What the model takes and gives, as the file says."""

    @property
    def completed(self) -> Configuration | None:
        """The configuration as the model itself completes it; None when it tells no more than its signature."""
        return None

    @property
    def ready(self) -> bool:
        """Whether calls would be taken now."""
        return True

    @property
    def devices(self) -> tuple[str, ...]:
        """On what it really runs, the preferred first."""
        return ("CPU",)

    @abstractmethod
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs, in this order.

        Args:
            inputs: one array for every input; types and shapes are those of the signature.
            outputs: names of outputs, at least one.

        Raises:
            Invalid: the inputs do not fit each other or the model in a way that the signature does not tell.
            Internal: it failed; the cause is chained.
        """

    def close(self) -> None:
        """Free what the model holds. Nothing runs any more."""
        return


class CallRuntime(Runtime):
    """A runtime that takes calls as they came: it sees their ids and parameters, and puts tensors together itself."""

    sees_calls: ClassVar[bool] = True
    """Whether the model itself is given the calls; else they are put together on their way to it."""

    @abstractmethod
    def execute(self, calls: Sequence[Call]) -> tuple[list[Answer | TidemillError], Times | None]:
        """Run calls as one batch; blocks until each has its reply.

        Returns:
            The reply to each call, in order; and where the time went, None when the runtime does not know.
        """

    @abstractmethod
    def stream(self, call: Call, receive: Receive) -> None:
        """Begin a call that may have any number of answers. Returns when the model has taken it; never raises."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """One call with these inputs.

        Raises:
            TidemillError: it failed.
        """
        (reply,), _ = self.execute([Call(inputs=inputs, outputs=outputs)])
        if isinstance(reply, TidemillError):
            raise reply
        return [reply.outputs[name] for name in outputs]
