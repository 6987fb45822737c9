"""First runs, so that no caller waits for what a runtime does once, and a model that cannot run is found."""

import math

import numpy as np

from tidemill.errors import Internal, Invalid, TidemillError
from tidemill.inference.calls import Array
from tidemill.inference.configuration import Configuration, Warmup, WarmupInput
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.signatures import FREE, TensorSpec
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

SIZES = (1, 32, 224)
"""What is tried for free dimensions, one size after the other; the first dimension, usually the batch, is always 1."""
_LARGEST = 2**24
"""Elements that inputs of a larger size than the first may have together."""


def warm_up(runtime: Runtime) -> str:
    """Run the model once; "" when it ran, or else why no size could be found that it runs with.

    Raises:
        Invalid: it does not run, although its signature leaves nothing open but the first dimensions.
    """
    specs, names = runtime.signature.inputs, runtime.signature.output_names
    problem = ""
    for size in SIZES:
        shapes = [_shape(spec, size) for spec in specs]
        if size != SIZES[0] and sum(map(math.prod, shapes)) > _LARGEST:
            break
        try:
            runtime.run({spec.name: _zeros(spec, shape) for spec, shape in zip(specs, shapes, strict=True)}, names)
        except (Invalid, Internal) as error:
            problem = str(error.__cause__ or error)[:400]
            continue
        return ""
    if all(spec.shape and FREE not in spec.shape[1:] for spec in specs):
        raise Invalid(f"the model does not run on zeros of its own signature: {problem}", reason="WARM_UP_FAILED")
    return problem


def run_warmups(runtime: Runtime, configuration: Configuration) -> None:
    """Run the requests that the configuration asks for, each so often as it says.

    Raises:
        Invalid: one does not fit the model, or fails.
    """
    outputs = [tensor.name for tensor in configuration.outputs]
    for sample in configuration.warmups:
        try:
            inputs = {name: _made(given, configuration, sample) for name, given in sample.inputs.items()}
            for name in configuration.required - inputs.keys():
                raise Invalid(f"input '{name}' is missing")
            for _ in range(sample.count):
                runtime.run(inputs, outputs)
        except TidemillError as error:
            said = str(error.__cause__ or error)[:400]
            raise Invalid(f"warm-up '{sample.name}' failed: {said}", reason="WARM_UP_FAILED") from error


def _made(given: WarmupInput, configuration: Configuration, sample: Warmup) -> Array:
    """Raises Invalid when the data of a file is not of the shape."""
    shape = ((sample.rows,) if configuration.max_batch else ()) + given.dims
    if given.data is not None:
        needed = math.prod(shape) * given.datatype.size
        # One row may stand for all, as samples are often written.
        data = (
            given.data * sample.rows if given.datatype.size and len(given.data) * sample.rows == needed else given.data
        )
        return codec.decode(given.datatype, shape, data)
    if given.datatype is DataType.BYTES:
        return np.full(shape, b"", dtype=object)
    if not given.random:
        return np.zeros(shape, given.datatype.numpy)
    numbers = np.random.default_rng(0)
    if given.datatype.numpy.kind == "f":
        return numbers.standard_normal(shape).astype(given.datatype.numpy)
    return numbers.integers(0, 2 if given.datatype is DataType.BOOL else 127, shape).astype(given.datatype.numpy)


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    return tuple(
        dimension if dimension != FREE else (size if position else 1) for position, dimension in enumerate(spec.shape)
    )


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype is DataType.BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.datatype.numpy)
