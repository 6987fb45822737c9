"""Implicit state: outputs of a sequence's request that become inputs of its next one."""

import math
from collections.abc import Mapping

import numpy as np

from tidemill.inference.calls import Array
from tidemill.inference.configuration import SequenceState
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType


class States:
    """The states of one model; those of a sequence are its inputs by name, each of one row.

    Args:
        states: as configured; dimensions of any size begin with 1, or with what the given bytes make.
        batched: whether the model's tensors have the dimension of a batch.

    Raises:
        Invalid: the bytes with which a sequence begins do not fit their type and dimensions.
    """

    def __init__(self, states: tuple[SequenceState, ...], *, batched: bool) -> None:
        self._inputs = {state.output: state.input for state in states}
        self.outputs = tuple(self._inputs)
        """Names of the outputs that every run must compute."""
        self.initial: Mapping[str, Array] = {state.input: _initial(state, batched=batched) for state in states}
        """With which every sequence begins; read only."""

    def after(self, before: Mapping[str, Array], outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The states after a request with these outputs; one that the model did not give stays as it was."""
        if not self._inputs:
            return before
        # Copied, since an output is a view of the whole batch: of others' rows, and larger than what is kept.
        found = {name: outputs[output].copy() for output, name in self._inputs.items() if output in outputs}
        return {**before, **found}


def _initial(state: SequenceState, *, batched: bool) -> Array:
    batch = (1,) if batched else ()
    dims = state.dims if state.initial_dims is None else state.initial_dims
    if state.initial is None:
        shape = (*batch, *(1 if size < 0 else size for size in dims))
        empty: object = b"" if state.datatype is DataType.BYTES else 0
        array = np.full(shape, empty, state.datatype.numpy)
    else:
        array = codec.decode(state.datatype, (*batch, *_sized(state, dims)), state.initial, state.input)
    array.flags.writeable = False
    return array


def _sized(state: SequenceState, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions, an open one being as large as the bytes say."""
    known = math.prod(size for size in dims if size >= 0) * max(1, state.datatype.size)
    free = len(state.initial or b"") // known if known else 0
    return tuple(size if size >= 0 else free for size in dims)
