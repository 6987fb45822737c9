"""What a traced TorchScript model takes and gives, by what it was traced with.

A file that `torch.jit.trace` made holds the inputs of the trace, and so their types and shapes; one that
`torch.jit.script` made holds nothing of the kind.
"""

import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import torch

from tidemill.inference.runtimes._torch import ERRORS, TYPES
from tidemill.inference.signatures import FREE, Signature, TensorSpec

_RECORD = "traced_inputs.pkl"


def traced_signature(data: bytes, module: Any) -> Signature | None:
    """The signature; None when the file does not tell it.

    Inputs have the names of `forward`'s arguments. Outputs have the keys of the dictionary that it gives, or else
    `OUTPUT__0` and so on. The first dimension is free if one row more goes in and comes out everywhere; of all others,
    those of the trace are the only ones that are known to work.

    Args:
        data: the file.
        module: what was loaded from it, on any device.
    """
    inputs = _inputs(data)
    if not inputs:
        return None
    outputs = _outputs(module, inputs)
    if not outputs:
        return None
    rows = inputs[0].shape[:1]
    if rows and rows[0] and all(spec.shape[:1] == rows for spec in (*inputs, *outputs)):
        longer = _outputs(module, _with_rows(inputs, rows[0] + 1))
        if longer == _with_rows(outputs, rows[0] + 1):
            return Signature(_with_rows(inputs, FREE), _with_rows(outputs, FREE))
    return Signature(inputs, outputs)


def _inputs(data: bytes) -> tuple[TensorSpec, ...]:
    """Inputs as they were traced; none when one is unknown or no tensor that can be sent."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if not any(name.endswith("/" + _RECORD) for name in archive.namelist()):
            return ()
    # For itself: a model that runs must not be taken for one of these shapes alone.
    told: Any = torch.jit.load(BytesIO(data), map_location="cpu", _restore_shapes=True)  # type: ignore[no-untyped-call]
    names = [argument.name for argument in told.forward.schema.arguments[1:]]
    found = []
    for name, value in zip(names, list(told.forward.graph.inputs())[1:], strict=True):
        kind = value.type()
        if kind.kind() != "TensorType" or kind.dtype() not in TYPES or (sizes := kind.sizes()) is None:
            return ()
        found.append(TensorSpec(name, TYPES[kind.dtype()], tuple(sizes)))
    return tuple(found)


def _outputs(module: Any, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What comes out for zeros of these shapes; nothing when that fails or is no tensors."""
    state = next(iter((*module.parameters(), *module.buffers())), None)
    device = state.device if state is not None else "cpu"
    types = {kind: dtype for dtype, kind in TYPES.items()}
    zeros = [torch.zeros(spec.shape, dtype=types[spec.datatype], device=device) for spec in inputs]
    try:
        with torch.no_grad():
            found = module(*zeros)
    except ERRORS:
        return ()
    if isinstance(found, torch.Tensor):
        found = (found,)
    named = found if isinstance(found, Mapping) else {f"OUTPUT__{place}": part for place, part in enumerate(found)}
    if not all(isinstance(part, torch.Tensor) and part.dtype in TYPES for part in named.values()):
        return ()
    return tuple(TensorSpec(str(name), TYPES[part.dtype], tuple(part.shape)) for name, part in named.items())


def _with_rows(specs: Sequence[TensorSpec], rows: int) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, (rows, *spec.shape[1:])) for spec in specs)
