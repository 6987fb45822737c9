"""Places that are bounded."""

import pytest

from tidemill.errors import Exhausted
from tidemill.slots import Slots


def test_who_finds_no_place_is_sent_away_with_a_time_to_come_back() -> None:
    slots = Slots(2, "readers", "TOO_MANY_READERS", retry_after=1.5)
    with slots, slots:
        assert slots.taken == 2
        with pytest.raises(Exhausted, match="at most 2 readers") as full, slots:
            pass
        assert (full.value.reason, full.value.retry_after) == ("TOO_MANY_READERS", 1.5)
        assert slots.taken == 2
    assert slots.taken == 0
    with pytest.raises(ZeroDivisionError), slots:
        raise ZeroDivisionError
    assert slots.taken == 0
