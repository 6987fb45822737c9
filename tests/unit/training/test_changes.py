"""Whoever waits for a job hears of its changes, and of those alone."""

from tidemill.training.changes import ALL, Changes


def test_stored_and_passing_changes() -> None:
    changes = Changes()
    with changes.of("a") as a, changes.of("a") as again, changes.of("b") as b, changes.of(ALL) as any_of_them:
        changes.stir("a")
        assert (a.is_set(), again.is_set(), b.is_set(), any_of_them.is_set()) == (True, True, False, False)
        changes.touch("b")
        assert b.is_set()
        assert any_of_them.is_set()
        for event in (a, again, b, any_of_them):
            event.clear()
        changes.touch_all()
        assert all(event.is_set() for event in (a, again, b, any_of_them))
    changes.touch("a")
    with changes.of("a") as late:
        assert not late.is_set()
        assert not changes.closed
        changes.close()
        assert late.is_set()
        assert changes.closed
