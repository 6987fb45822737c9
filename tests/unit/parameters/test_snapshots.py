"""The versions that are kept, and whose memory is used again."""

import numpy as np
import pytest

from tidemill.errors import OutOfRange
from tidemill.parameters.snapshots import Snapshots


def advance(snapshots: Snapshots) -> None:
    """The next version: every value one more."""
    draft = snapshots.draft()
    np.add(snapshots.latest.values, 1, out=draft)
    snapshots.advance(draft)


def test_the_latest_and_the_one_before_are_kept() -> None:
    snapshots = Snapshots(np.zeros(3, np.float32))
    for version in range(1, 6):
        advance(snapshots)
        assert snapshots.take(version).values.tolist() == [version] * 3
        assert snapshots.take(version - 1).values.tolist() == [version - 1] * 3
        with pytest.raises(OutOfRange):
            snapshots.take(version - 2)


def test_memory_is_used_again_when_nobody_reads_it() -> None:
    snapshots = Snapshots(np.zeros(3, np.float32))
    seen = set()
    for _ in range(10):
        advance(snapshots)
        seen.add(snapshots.latest.values.__array_interface__["data"][0])
    assert len(seen) == 3


def test_what_is_read_stays_as_it_was() -> None:
    snapshots = Snapshots(np.zeros(3, np.float32))
    read = [snapshots.take(0)]
    for version in range(1, 6):
        advance(snapshots)
        read.append(snapshots.take(version))
    assert [snapshot.values.tolist() for snapshot in read] == [[v] * 3 for v in range(6)]


def test_versions_without_a_change_share_their_values() -> None:
    snapshots = Snapshots(np.zeros(3, np.float32))
    first = snapshots.take(0)
    snapshots.advance(None)
    assert snapshots.latest.version == 1
    assert snapshots.latest.values is first.values
    for _ in range(4):
        advance(snapshots)
    assert first.values.tolist() == [0, 0, 0]
    snapshots.release(first)
    assert snapshots.latest.values.tolist() == [4, 4, 4]
