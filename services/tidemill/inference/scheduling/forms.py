"""What the inputs of a call look like: calls of one form can share a batch."""

from collections.abc import Hashable

from tidemill.errors import Invalid
from tidemill.inference.calls import Call


def form(call: Call, largest: int, model: str) -> Hashable:
    """Names, types and dimensions behind the first of a call's inputs.

    Args:
        call: to a model that takes batches.
        largest: most rows of a batch.
        model: its name, for messages.

    Raises:
        Invalid: it has more rows than a batch may have, or its inputs differ in their number.
    """
    if call.rows > largest:
        raise Invalid(f"inference request batch-size must be <= {largest} for '{model}'", reason="BATCH_TOO_LARGE")
    parts = []
    for name, array in call.inputs.items():
        if array.ndim == 0 or array.shape[0] != call.rows:
            raise Invalid(
                f"input '{name}' batch size does not match other inputs for '{model}'", reason="BATCH_MISMATCH"
            )
        parts.append((name, array.dtype.num, array.shape[1:]))
    if len(parts) > 1:
        parts.sort()
    return tuple(parts)
