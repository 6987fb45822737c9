"""Checks of the tensors that a configuration declares."""

import math
from collections.abc import Iterable, Sequence

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.inputs import MAX_TENSORS, shown
from tidemill.tensors.shapes import MAX_DIMENSION, MAX_DIMENSIONS

FREE = -1
LONGEST_NAME = 256


def refuse(text: str) -> Invalid:
    """The error for a configuration that cannot be."""
    return Invalid(text, reason="INVALID_CONFIG")


def check_name(name: str, what: str) -> None:
    """Return when a tensor may be called so. Raises Invalid."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise refuse(f"{what} '{shown(name)}' must have 1 to {LONGEST_NAME} printable characters as its name")


def check_unique(names: Iterable[str], what: str) -> None:
    """Return when no name comes twice. Raises Invalid."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refuse(f"{what} '{shown(name)}' is declared twice")
        seen.add(name)


def check_dims(dims: Sequence[int], what: str, *, batched: bool, fixed: bool = False) -> None:
    """Return when these can be dimensions without that of the batch. Raises Invalid."""
    most = MAX_DIMENSIONS - batched
    if len(dims) > most:
        raise refuse(f"{what} has {len(dims)} dims; at most {most} are possible")
    for dimension in dims:
        if not (1 <= dimension <= MAX_DIMENSION or (dimension == FREE and not fixed)):
            raise refuse(f"{what} has a dimension {dimension}; it must be {'' if fixed else '-1 or '}in [1, 2^31]")


def check_tensors(message: pb.ModelConfig) -> None:
    """Return when all inputs and outputs are as they can be. Raises Invalid."""
    for what, tensors in (("input", message.input), ("output", message.output)):
        if len(tensors) > MAX_TENSORS:
            raise refuse(f"a model may have at most {MAX_TENSORS} {what}s, not {len(tensors)}")
        check_unique((tensor.name for tensor in tensors), what)
        for tensor in tensors:
            _check_tensor(tensor, what, message.max_batch_size > 0)


def _check_tensor(tensor: "pb.ModelInput | pb.ModelOutput", kind: str, batched: bool) -> None:
    check_name(tensor.name, kind)
    what = f"{kind} '{tensor.name}'"
    if tensor.data_type == pb.TYPE_INVALID or tensor.data_type not in pb.DataType.values():
        raise refuse(f"{what} must have a data_type")
    if not tensor.dims:
        raise refuse(f"{what} must have dims")
    check_dims(tensor.dims, what, batched=batched)
    if tensor.is_shape_tensor or tensor.is_non_linear_format_io:
        raise refuse(f"{what}: shape tensors and elements in an order of their own are not offered")
    if isinstance(tensor, pb.ModelInput):
        if tensor.allow_ragged_batch:
            raise refuse(f"{what}: ragged batches are not offered")
        if tensor.format not in (pb.ModelInput.FORMAT_NONE, pb.ModelInput.FORMAT_NHWC, pb.ModelInput.FORMAT_NCHW):
            raise refuse(f"{what} has an unknown format")
        if tensor.format != pb.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            raise refuse(f"{what} has the format of images, and so must have 3 dims")
    if tensor.HasField("reshape"):
        _check_reshape(tensor.dims, tensor.reshape.shape, what, batched)


def _check_reshape(dims: Sequence[int], shape: Sequence[int], what: str, batched: bool) -> None:
    check_dims(shape, f"the reshape of {what}", batched=batched)
    if not shape and not batched:
        raise refuse(f"the reshape of {what} must have dimensions: the model takes no batches")
    if list(dims).count(FREE) != list(shape).count(FREE) or list(shape).count(FREE) > 1:
        raise refuse(f"{what} and its reshape must have the same number of -1, at most one")
    if math.prod(d for d in dims if d != FREE) != math.prod(d for d in shape if d != FREE):
        raise refuse(f"{what} and its reshape must have the same number of elements")
