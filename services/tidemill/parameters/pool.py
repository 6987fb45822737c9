"""Memory for gradients that is used again: new memory costs a page fault every few kilobytes."""

import threading
import weakref

import numpy as np

from tidemill.tensors.blocks import Array


class Pool:
    """Arrays of one length. Safe for threads.

    Args:
        elements: length of each, float32.
        most: how many that nobody uses are kept.
    """

    def __init__(self, elements: int, most: int) -> None:
        self._elements = elements
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[Array] = []
        self._lent: dict[int, weakref.ref[Array]] = {}

    def take(self) -> Array:
        """An array with anything in it."""
        with self._lock:
            array = self._idle.pop() if self._idle else np.empty(self._elements, np.dtype("<f4"))
            self._lent[id(array)] = weakref.ref(array)
            return array

    def give(self, array: Array) -> None:
        """Nobody uses this any more; what is not of this pool, or was given back before, is left alone."""
        with self._lock:
            known = self._lent.pop(id(array), None)
            if known is not None and known() is array and len(self._idle) < self._most:
                self._idle.append(array)
            if len(self._lent) > 4 * self._most:
                self._lent = {key: one for key, one in self._lent.items() if one() is not None}
