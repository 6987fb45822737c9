"""Tensors in another shape for the runtime than for callers."""

import math
from collections.abc import Mapping, Sequence
from typing import Self

from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.configuration import BATCH, Configuration, TensorConfiguration
from tidemill.inference.runtimes.base import CallRuntime, Runtime, Settings
from tidemill.inference.signatures import FREE, Signature, TensorSpec

Shape = tuple[int, ...]


def reshaped(runtime: Runtime, configuration: Configuration) -> Runtime:
    """`runtime` as callers see it: itself, unless some input or output is configured with another shape.

    Raises:
        Invalid: the runtime takes calls as they come, and so shapes them itself.
    """
    if all(tensor.reshape is None for tensor in (*configuration.inputs, *configuration.outputs)):
        return runtime
    if isinstance(runtime, CallRuntime) and runtime.sees_calls:
        raise Invalid("reshape is not offered for models that take requests themselves", reason="INVALID_CONFIG")
    return _Reshaping(runtime, configuration)


class _Reshaping(Runtime):
    """Gives a runtime other shapes than it is called with, and back."""

    def __init__(self, inner: Runtime, configuration: Configuration) -> None:
        self.platform = inner.platform  # type: ignore[misc]
        self._inner = inner
        self._kept = 1 if configuration.max_batch else 0
        self._inputs = _changes(configuration.inputs)
        self._outputs = _changes(configuration.outputs)
        signature = inner.signature
        self._signature = Signature(
            tuple(self._seen(spec, self._inputs) for spec in signature.inputs),
            tuple(self._seen(spec, self._outputs) for spec in signature.outputs),
        )

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """Never: another runtime does. Raises Invalid."""
        raise Invalid("this is no runtime of its own", reason="MODEL_REFUSED")

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """Never: another runtime does. Raises Invalid."""
        raise Invalid("this is no runtime of its own", reason="MODEL_REFUSED")

    @property
    def signature(self) -> Signature:
        """The inner one's, in the callers' shapes."""
        return self._signature

    @property
    def devices(self) -> tuple[str, ...]:
        """The inner one's."""
        return self._inner.devices

    @property
    def ready(self) -> bool:
        """The inner one's word."""
        return self._inner.ready

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run the inner one. Raises as it does, and Internal for an output that cannot have the callers' shape."""
        changed = {name: self._forth(name, array) for name, array in inputs.items()}
        found = self._inner.run(changed, outputs)
        return [self._back(name, array) for name, array in zip(outputs, found, strict=True)]

    def close(self) -> None:
        """Close the inner one."""
        self._inner.close()

    def _forth(self, name: str, array: Array) -> Array:
        if name not in self._inputs:
            return array
        dims, shape = self._inputs[name]
        free = _free(dims, array.shape[self._kept :])
        return array.reshape(array.shape[: self._kept] + tuple(free if d == FREE else d for d in shape))

    def _back(self, name: str, array: Array) -> Array:
        if name not in self._outputs:
            return array
        dims, shape = self._outputs[name]
        free = _free(shape, array.shape[self._kept :])
        try:
            return array.reshape(array.shape[: self._kept] + tuple(free if d == FREE else d for d in dims))
        except ValueError as error:
            raise Internal("the model failed on these inputs", reason="EXECUTION_FAILED") from error

    def _seen(self, spec: TensorSpec, changes: Mapping[str, tuple[Shape, Shape]]) -> TensorSpec:
        if spec.name not in changes:
            return spec
        return TensorSpec(spec.name, spec.datatype, (BATCH,) * self._kept + changes[spec.name][0])


def _changes(tensors: Sequence[TensorConfiguration]) -> dict[str, tuple[Shape, Shape]]:
    return {tensor.name: (tensor.dims, tensor.reshape) for tensor in tensors if tensor.reshape is not None}


def _free(pattern: Shape, shape: Shape) -> int:
    """Size of the one free dimension of `pattern` in a tensor of this shape."""
    fixed = math.prod(d for d in pattern if d != FREE)
    return math.prod(shape) // fixed if fixed else 0
