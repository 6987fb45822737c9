"""Work on many blocks, on several cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Lanes:
    """Does something for each of many blocks, in so many threads; block `at` is in the lane `at % count`.

    Blocks of one lane come one after the other, in order. NumPy and PyTorch let go of the interpreter while they work
    on a block, so lanes use as many cores.

    Args:
        count: number of lanes; 1 = the caller's thread does all.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, thread_name_prefix="lane") if count > 1 else None

    def each(self, blocks: int, work: Callable[[int], None]) -> None:
        """`work(at)` for each block; the first error of a lane ends that lane, and is raised when all have ended."""

        def lane(number: int) -> None:
            for at in range(number, blocks, self.count):
                work(at)

        if self._pool is None or blocks < 2:
            for at in range(blocks):
                work(at)
            return
        others = [self._pool.submit(lane, number) for number in range(1, min(self.count, blocks))]
        try:
            lane(0)
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Lanes()
"""The caller's thread."""
