"""A guarded transaction whose outcome is known at the end, also when the store's answer was lost."""

import logging
from collections.abc import Sequence

from tidemill.errors import TidemillError, Unavailable
from tidemill.kv.base import Compare, Kv, Operation, Put

LOG = logging.getLogger(__name__)
ATTEMPTS = 3
UNKNOWN = "OUTCOME_UNKNOWN"


async def commit(kv: Kv, guard: Compare, operations: Sequence[Operation], witness: Put) -> bool:
    """Apply `operations` if `guard` holds; whether they were applied.

    When an answer is lost, `witness` is read back. If it is not there the request may still be on its way, so the very
    same transaction is sent again: both carry one guard, which the first to arrive makes false for the other.

    Args:
        guard: a condition that `operations` make false for ever: they write or delete its key.
        witness: one of `operations`, whose value nobody else writes (it holds a nonce).

    Raises:
        Unavailable: reason OUTCOME_UNKNOWN, when it could not be found out.
        TidemillError: any other, of the store: nothing was applied.
    """
    lost: TidemillError | None = None
    for _ in range(ATTEMPTS):
        try:
            result = await kv.txn([guard], operations)
        except TidemillError as error:
            if lost is None and not (isinstance(error, Unavailable) and error.reason == UNKNOWN):
                raise
            lost = error
            LOG.warning("a write's answer was lost, reading back: %s", error.message)
        else:
            if result.succeeded or lost is None:
                return result.succeeded
            return await _written(kv, witness)  # the guard fell: by the lost write, or by another's
        if await _written(kv, witness):
            return True
    raise _unknown(lost)


async def _written(kv: Kv, witness: Put) -> bool:
    try:
        entry = await kv.get(witness.key)
    except TidemillError as error:
        raise _unknown(error) from error
    return entry is not None and entry.value == witness.value


def _unknown(cause: TidemillError | None) -> Unavailable:
    detail = f": {cause.message}" if cause else ""
    return Unavailable(f"the store did not say whether the change was made{detail}", reason=UNKNOWN)
