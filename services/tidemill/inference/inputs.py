"""Tensors of a request held against a model's signature; the texts are those that existing clients test for.

Everything is computed in Python integers and checked before anything is allocated.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tidemill.errors import Invalid
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors import codec, shapes
from tidemill.tensors.dtypes import DataType

Array = np.ndarray[Any, Any]

MAX_TENSORS = 256
"""Most inputs, and most outputs, of a request."""
_SHOWN = 128


class Source(Protocol):
    """Raw elements that lie elsewhere, and are fetched once their size is known to be right."""

    def __len__(self) -> int:
        """Bytes."""

    def read(self) -> bytes:
        """All of them. Raises TidemillError."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input as a client sent it.

    Args:
        name, datatype, shape: what the client says of it.
        data: its elements as raw little-endian bytes, or as a flat array that a protocol made of typed elements.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | Array | Source


def check_count(number: int, what: str) -> None:
    """Return when a request may have so many tensors. Raises Invalid."""
    if number > MAX_TENSORS:
        raise Invalid(f"a request may have at most {MAX_TENSORS} {what}s, not {number}", reason="TOO_MANY_TENSORS")


def bind(
    tensors: Sequence[InputTensor], signature: Signature, model: str, required: Collection[str] | None = None
) -> dict[str, Array]:
    """An array for each input that was sent, over the bytes of the request where the element type allows.

    Args:
        tensors: the inputs of the request.
        signature: of the model.
        model: its name, for messages.
        required: names of the inputs that may not be left out; None = all.

    Raises:
        Invalid: inputs are unknown, doubled or missing, or one differs from the signature in type, shape or size.
    """
    check_count(len(tensors), "input")
    bound: dict[str, Array] = {}
    specs = signature.input
    for tensor in tensors:
        spec = specs.get(tensor.name)
        if spec is None:
            raise _invalid(f"unexpected inference input '{shown(tensor.name)}' for model '{model}'", "UNKNOWN_INPUT")
        if tensor.name in bound:
            raise _invalid(f"input '{tensor.name}' already exists in request", "DUPLICATE_INPUT")
        bound[tensor.name] = _array(tensor, spec, model)
    if len(bound) != len(specs):
        needed = specs.keys() if required is None else required
        missing = [name for name in specs if name in needed and name not in bound]
        if missing:
            raise _missing(bound, missing, len(needed), len(specs), model)
    return bound


def check_shape(shape: Sequence[int], spec: TensorSpec, model: str) -> None:
    """Return when an input may have this shape. Raises Invalid."""
    if not spec.accepts(shape):
        raise _invalid(
            f"unexpected shape for input '{spec.name}' for model '{model}'. "
            f"Expected {_dimensions(spec.shape)}, got {_dimensions(shape)}",
            "WRONG_SHAPE",
        )


def rows_of(inputs: Mapping[str, Array], max_batch: int, model: str) -> int:
    """Size of the batch dimension; 1 for a model that has none.

    Args:
        inputs: as `bind` gives them.
        max_batch: most rows; 0 = the model takes no batches.
        model: its name, for messages.

    Raises:
        Invalid: the inputs have different sizes, or one that the model does not take.
    """
    if not max_batch:
        return 1
    rows = -1
    for name, array in inputs.items():
        size = array.shape[0] if array.ndim else 0
        if rows >= 0 and size != rows:
            raise _invalid(f"input '{name}' batch size does not match other inputs for '{model}'", "WRONG_BATCH")
        rows = size
    if rows < 0:
        return 1
    if rows > max_batch:
        raise _invalid(f"inference request batch-size must be <= {max_batch} for '{model}'", "WRONG_BATCH")
    if rows == 0:
        raise _invalid(f"inference request batch-size must be >= 1 for '{model}'", "WRONG_BATCH")
    return rows


def wanted(outputs: Sequence[str], signature: Signature, model: str) -> Sequence[str]:
    """The outputs to compute: those asked for, in this order; all when none are.

    Raises:
        Invalid: for an unknown output, or one asked for twice.
    """
    if not outputs:
        return signature.output_names
    check_count(len(outputs), "output")
    seen = set()
    for name in outputs:
        if name in seen:
            raise _invalid(f"output '{shown(name)}' already exists in request", "DUPLICATE_OUTPUT")
        seen.add(name)
        if name not in signature.output:
            raise _invalid(f"unexpected inference output '{shown(name)}' for model '{model}'", "UNKNOWN_OUTPUT")
    return outputs


def _array(tensor: InputTensor, spec: TensorSpec, model: str) -> Array:
    count = shapes.elements(tensor.shape, f"inputs['{spec.name}'].shape")
    if tensor.datatype != spec.datatype.name:
        raise _invalid(
            f"inference input '{spec.name}' data-type is '{shown(tensor.datatype)}', "
            f"but model '{model}' expects '{spec.datatype.name}'",
            "WRONG_DATATYPE",
        )
    check_shape(tensor.shape, spec, model)
    data = tensor.data
    if isinstance(data, bytes):
        return _from_raw(data, count, tensor, spec, model)
    if not isinstance(data, np.ndarray):
        _check_raw(len(data), count, spec, model)
        return _from_raw(data.read(), count, tensor, spec, model)
    if len(data) != count:
        if spec.datatype is DataType.BYTES:
            raise _elements(len(data), count, spec)
        raise _size(len(data) * spec.datatype.size, count, spec, model)
    return _narrowed(data, spec).reshape(tuple(tensor.shape))


def _from_raw(data: bytes, count: int, tensor: InputTensor, spec: TensorSpec, model: str) -> Array:
    kind = spec.datatype
    _check_raw(len(data), count, spec, model)
    if kind is DataType.BYTES:
        return codec.decode(kind, tensor.shape, data, f"inputs['{spec.name}']")
    if kind not in (DataType.BOOL, DataType.BF16):
        return np.frombuffer(data, kind.numpy).reshape(tuple(tensor.shape))
    if kind is DataType.BOOL:  # any other byte than 0 and 1 would be neither true nor false to a kernel
        truth: Array = np.frombuffer(data, np.uint8) != 0
        return truth.reshape(tuple(tensor.shape))
    return codec.decode(kind, tensor.shape, data)


def _check_raw(size: int, count: int, spec: TensorSpec, model: str) -> None:
    if spec.datatype is DataType.BYTES:
        if size < 4 * count:
            raise _elements(size // 4, count, spec)
    elif size != count * spec.datatype.size:
        raise _size(size, count, spec, model)


def _narrowed(data: Array, spec: TensorSpec) -> Array:
    """Typed elements in the model's type: protocols carry small integers in larger ones."""
    wanted = spec.datatype.numpy
    if data.dtype == wanted:
        return data
    if wanted.kind in "iu" and data.size:
        limits = np.iinfo(wanted)
        if data.min() < limits.min or data.max() > limits.max:
            raise _invalid(
                f"input '{spec.name}' has elements outside of [{limits.min}, {limits.max}], the range of "
                f"{spec.datatype.name}",
                "OUT_OF_RANGE_ELEMENT",
            )
    return data.astype(wanted)


def _missing(bound: Mapping[str, Array], missing: list[str], needed: int, known: int, model: str) -> Invalid:
    if needed == known:
        wanted = f"expected {known} inputs"
    else:
        wanted = f"expected number of inputs between {needed} and {known}"
    return _invalid(
        f"{wanted} but got {len(bound)} inputs for model '{model}'. "
        f"Got input(s) {_names(bound)}, but missing required input(s) {_names(missing)}. "
        "Please provide all required input(s).",
        "MISSING_INPUT",
    )


def _size(got: int, count: int, spec: TensorSpec, model: str) -> Invalid:
    return _invalid(
        f"input byte size mismatch for input '{spec.name}' for model '{model}'. "
        f"Expected {count * spec.datatype.size}, got {got}",
        "SIZE_MISMATCH",
    )


def _elements(got: int, count: int, spec: TensorSpec) -> Invalid:
    return _invalid(
        f"unexpected number of string elements {got} for inference input '{spec.name}', expecting {count}",
        "SIZE_MISMATCH",
    )


def _invalid(text: str, reason: str) -> Invalid:
    return Invalid(text, reason=reason)


def shown(text: str) -> str:
    """A stranger's text, cut to a length that fits in a message."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _names(names: Collection[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _dimensions(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
