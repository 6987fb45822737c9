"""The C allocator's thresholds, for processes that move bulk data."""

import ctypes

from tidemill.rpc.options import CHUNK

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_chunks() -> bool:
    """Let this process's allocator keep the memory of messages for the next ones; False where it is not glibc's.

    As it comes, glibc maps every block from 128 KiB on anew and gives it back at once, so each chunk of a stream costs
    hundreds of page faults in every copy of it: more than half the time of a push. What is larger than a few chunks is
    mapped as before, and given back as soon as it is free.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 4 * CHUNK)) and bool(mallopt(_M_TRIM_THRESHOLD, 32 * CHUNK))
