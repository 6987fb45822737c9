"""The interface of runtimes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from tidemill.inference.signatures import Signature

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator chooses for all models.

    Args:
        providers: execution providers in order of preference, by the names of ONNX Runtime; others than that runtime
            may ignore them.
        threads: threads inside of one run.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 1


class Runtime(ABC):
    """One model version, loaded. `run` is called from several threads at a time.

    Arrays have the type that `DataType.numpy` says: BF16 is widened to float32, BYTES are object arrays of `bytes`.
    """

    platform: ClassVar[str]
    """Kind of model and runtime, as clients of the Open Inference Protocol know it."""

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

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """What the model takes and gives, as the file says."""

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
