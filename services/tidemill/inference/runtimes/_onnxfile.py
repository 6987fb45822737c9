"""A walk over the wire format of an ONNX file that finds what would make a runtime open other files.

Reads the protobuf encoding itself, so that it costs no dependency and no second copy of the weights: bytes of tensors
are stepped over. Field numbers are those of ONNX's published schema (onnx.proto, IR version 13).
"""

import posixpath
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.errors import Invalid
from tidemill.inference.inputs import shown
from tidemill.inference.runtimes import _onnxtensor
from tidemill.inference.runtimes._onnxtensor import Outside
from tidemill.inference.runtimes._wire import BYTES, Field, fields, length_delimited

MAX_FIELDS = 5_000_000
"""Fields that are looked at before a file counts as hostile: seconds of work, and far above any graph."""
MAX_DEPTH = 64
"""Messages inside of each other, as in graphs in attributes of nodes of graphs."""
MOST_COPIES = 4
"""How often, on average, a byte of a model's files may be used for weights: each use takes memory of its own."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {},
}
_INITIALIZER_DEPTH = 2
_NODE_OPERATOR, _PRECOMPILED = 4, b"EPContext"
_MODEL_GRAPH = 7


@dataclass(frozen=True, slots=True)
class Whole:
    """A model, and the files that it still needs.

    Args:
        data: the model.
        files: by the names that the model has for them. Only initializers of its main graph lie in them.
    """

    data: bytes
    files: Mapping[str, bytes]


def gather(path: str, files: Mapping[str, bytes]) -> Whole:
    """The model at `path` of `files`, every tensor of which lies in itself or in one of these files.

    ONNX Runtime takes files from memory for the initializers of the main graph only. External data that lies anywhere
    else (in attributes, subgraphs, functions, sparse tensors) is put into the model here.

    Raises:
        Invalid: it is not encoded as a model; a tensor anywhere in it (also in subgraphs and functions) lies in a file
            that is not among these, or not within it; or a node wraps a precompiled model, which may name a file.
    """
    data = files[path]
    folder = posixpath.dirname(path)
    kept: dict[str, bytes] = {}
    inlined: dict[int, bytes] = {}
    left = MOST_COPIES * sum(map(len, files.values()))
    for found in _outside_tensors(data):
        tensor = found.tensor
        source = posixpath.join(folder, tensor.location)
        if not _plain(tensor.location) or source == path or source not in files:
            raise Invalid(
                f"the model keeps weights in other files (external data): '{shown(tensor.location)}' is not one of its "
                "own",
                reason="MODEL_REFUSED",
            )
        content = _onnxtensor.content(tensor, files[source])
        left -= len(content)
        if left < 0:
            raise Invalid(
                f"the model uses its files for more than {MOST_COPIES} times their bytes", reason="MODEL_REFUSED"
            )
        if found.initializer:
            kept[tensor.location] = files[source]
        else:
            inlined[found.first] = _onnxtensor.with_content(data, tensor, content)
    return Whole(_replaced(data, 0, len(data), _MODEL, inlined, sorted(inlined)) if inlined else data, kept)


@dataclass(frozen=True, slots=True)
class _Found:
    """An external tensor: where in the file its message begins, and whether it is an initializer of the main graph."""

    tensor: Outside
    first: int
    initializer: bool


def _outside_tensors(data: bytes) -> list[_Found]:
    """Every tensor in the model that lies in another file. Raises Invalid."""
    if not any(number == _MODEL_GRAPH for number, *_ in fields(data, 0, len(data))):
        raise Invalid("the file is not an ONNX model: it holds no graph", reason="MODEL_REFUSED")
    found: list[_Found] = []
    walk = _Walk()
    waiting = [(_MODEL, 0, len(data), 0, False)]
    while waiting:
        kind, start, end, depth, main = waiting.pop()
        walk.enter(depth)
        if kind == _TENSOR:
            tensor = _onnxtensor.outside(data, start, end, walk.counted(fields(data, start, end)))
            if tensor is not None:
                found.append(_Found(tensor, start, main and depth == _INITIALIZER_DEPTH))
            continue
        inside = _INSIDE[kind]
        for number, wire, first, last, _ in walk.counted(fields(data, start, end)):
            if kind == _NODE and number == _NODE_OPERATOR and data[first:last] == _PRECOMPILED:
                raise Invalid("the model holds a precompiled node (EPContext)", reason="MODEL_REFUSED")
            if wire == BYTES and number in inside:
                below = main or (kind == _MODEL and number == _MODEL_GRAPH)
                waiting.append((inside[number], first, last, depth + 1, below))
    return found


@dataclass(slots=True)
class _Walk:
    """Bounds of the walk."""

    seen: int = field(default=0)

    def enter(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Invalid(f"the model is nested deeper than {MAX_DEPTH} messages", reason="MODEL_REFUSED")

    def counted(self, unbounded: Iterator[Field]) -> Iterator[Field]:
        for found in unbounded:
            self.seen += 1
            if self.seen > MAX_FIELDS:
                raise Invalid(f"the model has more than {MAX_FIELDS} fields", reason="MODEL_REFUSED")
            yield found


def _plain(location: str) -> bool:
    """Whether this is a relative path that goes only down, in its shortest form."""
    return (
        not location.startswith("/")
        and all(part not in ("", ".", "..") for part in location.split("/"))
        and not any(character in "\\*:" or ord(character) < 32 for character in location)
    )


def _replaced(
    data: bytes, start: int, end: int, kind: int, tensors: Mapping[int, bytes], places: Sequence[int]
) -> bytes:
    """The message in `data[start:end]` with other tensors in it: those that begin at `places`, which rise."""
    parts: list[bytes] = []
    copied = start
    for number, wire, first, last, begin in fields(data, start, end):
        below = _INSIDE[kind].get(number) if wire == BYTES else None
        if below is None:
            continue
        place = bisect_left(places, first)
        if place == len(places) or places[place] >= last:
            continue
        inner = tensors[first] if below == _TENSOR else _replaced(data, first, last, below, tensors, places)
        parts += (data[copied:begin], length_delimited(number, inner))
        copied = last
    return b"".join((*parts, data[copied:end]))
