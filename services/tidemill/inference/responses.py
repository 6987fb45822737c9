"""Answers kept for the next request with the same inputs, bounded in bytes over all versions."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tidemill.inference.calls import Answer, Array, Call

_OVERHEAD = 512
"""Bytes that an answer, and an array of it, takes beside its elements; by estimate."""
_OBJECT = 48
"""Bytes that a string takes beside its characters; by estimate."""


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer
    size: int


class ResponseCache:
    """The answers of all versions; those that were not asked for longest go first. Safe to use from any thread.

    Args:
        limit: bytes that they may take together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Section, bytes], _Kept] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that are taken."""
        return self._size

    def section(self) -> "Section":
        """A part for one version, which no other one can read."""
        return Section(self)

    def get(self, section: "Section", digest: bytes) -> Answer | None:
        """What is kept."""
        with self._lock:
            kept = self._kept.get((section, digest))
            if kept is None:
                return None
            self._kept.move_to_end((section, digest))
        return Answer(outputs=dict(kept.answer.outputs), parameters=dict(kept.answer.parameters))

    def put(self, section: "Section", digest: bytes, answer: Answer) -> None:
        """Keep a copy; nothing is kept that is larger than all may be together."""
        size = _size(answer)
        if size > self._limit:
            return
        outputs = {name: _own(array) for name, array in answer.outputs.items()}
        kept = _Kept(Answer(outputs=outputs, parameters=dict(answer.parameters)), size)
        with self._lock:
            self._forget((section, digest))
            while self._size + size > self._limit:
                self._forget(next(iter(self._kept)))
            self._kept[section, digest] = kept
            self._size += size

    def drop(self, section: "Section") -> None:
        """Forget all answers of a version."""
        with self._lock:
            for key in [key for key in self._kept if key[0] is section]:
                self._forget(key)

    def _forget(self, key: tuple["Section", bytes]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size


class Section:
    """The answers of one version.

    Args:
        cache: that has room for them.
    """

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache

    def get(self, digest: bytes) -> Answer | None:
        """What is kept; its arrays are read only."""
        return self._cache.get(self, digest)

    def put(self, digest: bytes, answer: Answer) -> None:
        """Keep a copy of an answer."""
        self._cache.put(self, digest, answer)

    def close(self) -> None:
        """Forget all."""
        self._cache.drop(self)


def digest(call: Call) -> bytes:
    """SHA-256 over all of a call that its answer may depend on: inputs, wanted outputs, parameters.

    Every part is led by its length, so that no two different calls read the same.
    """
    hashed = hashlib.sha256()

    def add(part: bytes) -> None:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)

    for name in sorted(call.inputs):
        array = call.inputs[name]
        add(name.encode())
        add(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype == object:
            for element in array.flat:
                add(element)
        else:
            hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    add(b"")
    for output in call.outputs:
        add(output.encode())
    add(b"")
    for key, value in sorted(call.parameters.items()):
        add(key.encode())
        add(f"{type(value).__name__} {value!r}".encode())
    return hashed.digest()


def _own(array: Array) -> Array:
    """A copy, so that a row does not hold its whole batch in memory."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _size(answer: Answer) -> int:
    outputs: Mapping[str, Array] = answer.outputs
    return _OVERHEAD + sum(
        _OVERHEAD
        + array.nbytes
        + (sum(len(element) + _OBJECT for element in array.flat) if array.dtype == object else 0)
        for array in outputs.values()
    )
