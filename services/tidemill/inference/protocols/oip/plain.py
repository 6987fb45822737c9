"""Plain requests, raw tensors without parameters, are read and answered without protobuf when one like them came by.

Clients send the same request again and again, but for its id and its tensors. What stands in front of the tensors in
the bytes of a request has been parsed and checked once; the same bytes mean the same. So a small table of such
beginnings (`Pattern`) takes the place of the parser, and what was found out about one for a version (`Plan`) that of
the checks. Whatever is not plain, not known yet, or not as expected, goes the ordinary way, which makes all errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.calls import Answer, Call
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip.requests import MAX_ID
from tidemill.inference.signatures import TensorSpec
from tidemill.tensors.dtypes import DataType

_NAME, _VERSION, _ID, _INPUT, _OUTPUT, _RAW = 0x0A, 0x12, 0x1A, 0x2A, 0x32, 0x3A
"""First bytes of the fields of a plain request: number and wire type."""
_HEADS = frozenset({_NAME, _VERSION, _INPUT, _OUTPUT})
_ANSWER_ID, _ANSWER_RAW = b"\x1a", b"\x32"
_LONGEST = 4096
"""Most bytes in front of the tensors."""
_MOST = 256
"""Most beginnings that are known at a time, and most shapes of an answer for each."""
_ALIGNED = 16
"""What vector instructions want of an address; the content of a `bytes` object begins at such a one."""
_COPIED = frozenset({DataType.BYTES, DataType.BF16, DataType.BOOL})
"""Types whose elements are not simply those of the array."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a beginning means to one loaded version.

    Args:
        key: tells the version from all others that were or will be loaded.
        inputs: name, element type, shape and bytes of each.
        outputs: names of those to compute.
        rows: size of the batch dimension.
        heads: by the shapes of an answer's outputs, its message in front of the id, and between id and tensors.
    """

    key: str
    inputs: Sequence[tuple[str, Any, tuple[int, ...], int]]
    outputs: Sequence[str]
    rows: int
    heads: dict[tuple[tuple[int, ...], ...], tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Pattern:
    """A beginning that was parsed."""

    model_name: str
    model_version: str
    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs, in the order of their tensors."""
    plan: Plan | None = None
    """Of the version that it was last asked of."""


class Plain:
    """A request whose beginning is known; what a message would be asked for it answers like one."""

    __slots__ = ("_data", "_raw", "id", "model_name", "model_version", "pattern")

    def __init__(self, pattern: Pattern, id: str, data: bytes, raw: Sequence[tuple[int, int]]) -> None:
        self.pattern = pattern
        self.model_name = pattern.model_name
        self.model_version = pattern.model_version
        self.id = id
        self._data = data
        self._raw = raw

    def message(self) -> pb.ModelInferRequest:
        """The message that it is."""
        return pb.ModelInferRequest.FromString(self._data)

    def call(self, loaded: Loaded, expires: float | None, alive: Callable[[], bool]) -> Call | None:
        """The call that `Reader.call` would make of the message; None when that must be asked."""
        plan = self.pattern.plan
        if plan is None or plan.key != loaded.key or len(plan.inputs) != len(self._raw):
            return None
        inputs = {}
        for (name, kind, shape, size), (start, end) in zip(plan.inputs, self._raw, strict=True):
            if end - start != size:
                return None
            data = self._data if start % _ALIGNED == 0 else self._data[start:end]
            inputs[name] = np.ndarray(shape, kind, data, start if data is self._data else 0)
        return Call(inputs=inputs, outputs=plan.outputs, rows=plan.rows, id=self.id, expires=expires, alive=alive)

    def learn(self, loaded: Loaded, call: Call) -> None:
        """Note what `Reader.call` has made of the message."""
        signature = loaded.signature
        specs = [signature.input[name] for name in self.pattern.shapes]
        if any(spec.datatype in _COPIED for spec in (*specs, *(signature.output[name] for name in call.outputs))):
            return
        inputs = [_input(spec, shape) for spec, shape in zip(specs, self.pattern.shapes.values(), strict=True)]
        if not all(size for _, _, _, size in inputs):
            return
        self.pattern.plan = Plan(loaded.key, inputs, tuple(call.outputs), call.rows)

    def response(self, loaded: Loaded, answer: Answer) -> bytes | None:
        """The message that `Writer.response` would make, serialized; None when that must be asked."""
        plan = self.pattern.plan
        if answer.parameters or plan is None or plan.key != loaded.key:
            return None
        arrays = answer.outputs.values()
        specs = loaded.signature.output
        shapes = []
        for name, array in answer.outputs.items():
            if array.dtype != specs[name].datatype.numpy:
                return None
            shapes.append(array.shape)
        head = plan.heads.get(tuple(shapes))
        if head is None:
            head = _head(plan, loaded, answer)
        first, second = head
        pieces: list[bytes | memoryview] = [first]
        if self.id:
            id = self.id.encode()
            pieces += (_ANSWER_ID, _varint(len(id)), id)
        pieces.append(second)
        for array in arrays:
            # What lies in one piece in memory is copied once, into the message.
            whole = array.data if array.flags.c_contiguous else array.tobytes()
            pieces += (_ANSWER_RAW, _varint(array.nbytes), whole)
        return b"".join(pieces)


class Patterns:
    """The beginnings that are known. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: dict[bytes, Pattern] = {}

    def read(self, data: bytes, otherwise: Callable[[bytes], Any]) -> Any:
        """A plain request when its beginning is known, else what `otherwise` reads."""
        cut = _cut(data)
        if cut is None:
            return otherwise(data)
        key, id, raw = cut
        pattern = self._known.get(key)
        if pattern is not None:
            return Plain(pattern, id, data, raw)
        request = otherwise(data)
        if isinstance(request, pb.ModelInferRequest) and _is_plain(request, len(raw)):
            if len(self._known) >= _MOST:
                self._known = {}
            shapes = {tensor.name: tuple(tensor.shape) for tensor in request.inputs}
            self._known[key] = Pattern(request.model_name, request.model_version, shapes)
        return request


def write(response: pb.ModelInferResponse | bytes) -> bytes:
    """A response as it travels."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def _is_plain(request: pb.ModelInferRequest, raw: int) -> bool:
    names = {tensor.name for tensor in request.inputs}
    return (
        not request.parameters
        and len(request.inputs) == raw == len(names)
        and not any(tensor.parameters or tensor.HasField("contents") for tensor in request.inputs)
        and not any(output.parameters for output in request.outputs)
    )


def _cut(data: bytes) -> tuple[bytes, str, list[tuple[int, int]]] | None:
    """The beginning of a request without its id, the id, and where its tensors lie; None when it cannot be plain."""
    size = len(data)
    position = 0
    begin = end = 0
    id = ""
    raw: list[tuple[int, int]] = []
    try:
        while position < size and (tag := data[position]) != _RAW:
            length, start = _number(data, position + 1)
            if tag == _ID and not end:
                begin, end = position, start + length
                id = data[start:end].decode()
            elif tag not in _HEADS:
                return None
            position = start + length
        head = position
        while position < size:
            if data[position] != _RAW:
                return None
            length, start = _number(data, position + 1)
            position = start + length
            raw.append((start, position))
    except (IndexError, UnicodeDecodeError):
        return None
    if position != size or head > _LONGEST or len(id) > MAX_ID or not raw:
        return None
    return data[:begin] + data[end:head], id, raw


def _number(data: bytes, position: int) -> tuple[int, int]:
    """The length at `position`, and where it ends. Raises IndexError when it is too long to be one."""
    value = data[position]
    if value < 0x80:
        return value, position + 1
    value &= 0x7F
    for shift in (7, 14, 21, 28):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
    raise IndexError(position)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _input(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[str, Any, tuple[int, ...], int]:
    kind = np.dtype(spec.datatype.numpy)
    return spec.name, kind, shape, int(np.prod(shape, dtype=np.int64)) * kind.itemsize


def _head(plan: Plan, loaded: Loaded, answer: Answer) -> tuple[bytes, bytes]:
    first = pb.ModelInferResponse(model_name=loaded.version.model, model_version=loaded.label)
    second = pb.ModelInferResponse()
    specs = loaded.signature.output
    shapes = []
    for name, array in answer.outputs.items():
        second.outputs.add(name=name, datatype=specs[name].datatype.name, shape=array.shape)
        shapes.append(array.shape)
    if len(plan.heads) >= _MOST:
        plan.heads.clear()
    head = plan.heads[tuple(shapes)] = first.SerializeToString(), second.SerializeToString()
    return head
