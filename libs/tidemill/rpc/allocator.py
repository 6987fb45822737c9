"""The C allocator's thresholds, for processes that move bulk data."""

import ctypes
from collections.abc import Mapping

from tidemill.rpc.options import CHUNK

_SETTINGS = {
    -3: 4 * CHUNK,  # M_MMAP_THRESHOLD
    -1: 32 * CHUNK,  # M_TRIM_THRESHOLD
    -8: 2,  # M_ARENA_MAX: each keeps up to the trim threshold, and there may be one a thread
}

_ALL = {-3: 1 << 30, -1: (1 << 31) - 1, -8: 2}


def keep_chunks() -> bool:
    """Let this process's allocator keep the memory of messages for the next ones; False where it is not glibc's.

    As it comes, glibc maps every block from 128 KiB on anew and gives it back at once, so each chunk of a stream costs
    hundreds of page faults in every copy of it: more than half the time of a push. What is larger than a few chunks is
    mapped as before, and given back as soon as it is free. To be called before there are threads.
    """
    return _set(_SETTINGS)


def keep_all() -> bool:
    """Let this process's allocator keep whatever it has had; for processes that compute, step by step the same.

    A gradient of tens of megabytes that is mapped anew in every step costs a third of the step in page faults.
    """
    return _set(_ALL)


def _set(settings: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(bool(mallopt(name, value)) for name, value in settings.items())
