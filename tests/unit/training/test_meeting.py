"""Where workers meet: who is sent where, and when another meeting begins."""

from tidemill.training.meeting import Meeting


def test_all_are_sent_where_rank_0_waits() -> None:
    meeting = Meeting()
    assert meeting.arrive(1, 0, lost=0, address="") == (1, "")
    assert meeting.arrive(0, 0, lost=0, address="a:1") == (1, "a:1")
    assert meeting.arrive(1, 0, lost=0, address="") == (1, "a:1")


def test_another_begins_once_when_several_have_lost_each_other() -> None:
    meeting = Meeting()
    for rank in (0, 1, 2):
        meeting.arrive(rank, 0, lost=0, address="a:1" if rank == 0 else "")
    assert meeting.arrive(2, 0, lost=1, address="") == (2, ""), "rank 0 is not there yet"
    assert meeting.arrive(1, 0, lost=1, address="") == (2, "")
    assert meeting.arrive(0, 0, lost=1, address="a:1") == (2, "a:1")
    assert meeting.arrive(1, 0, lost=1, address="") == (2, "a:1")


def test_another_begins_when_a_new_process_has_a_rank() -> None:
    meeting = Meeting()
    meeting.arrive(0, 0, lost=0, address="a:1")
    meeting.arrive(1, 0, lost=0, address="")
    assert meeting.arrive(1, 1, lost=0, address="") == (2, "")
    assert meeting.arrive(1, 1, lost=0, address="") == (2, ""), "it asks again"
    assert meeting.arrive(0, 0, lost=1, address="a:1") == (2, "a:1")


def test_a_process_that_never_arrived_is_replaced_without_another() -> None:
    meeting = Meeting()
    meeting.arrive(0, 0, lost=0, address="a:1")
    assert meeting.arrive(1, 5, lost=0, address="") == (1, "a:1")


def test_nobody_is_sent_to_a_rank_0_that_died() -> None:
    meeting = Meeting()
    meeting.arrive(0, 0, lost=0, address="a:1")
    meeting.arrive(1, 0, lost=0, address="")
    assert meeting.arrive(1, 0, lost=1, address="") == (2, "")
    assert meeting.arrive(0, 1, lost=0, address="b:2") == (2, "b:2")
    assert meeting.arrive(1, 0, lost=1, address="") == (2, "b:2")


def test_what_workers_say_makes_up_for_what_was_forgotten() -> None:
    meeting = Meeting()
    meeting.seen(0, 0, 7)
    meeting.seen(1, 2, 7)
    assert meeting.generation == 7
    assert meeting.arrive(1, 3, lost=0, address="") == (8, "")
    meeting.seen(0, 0, 7)
    assert meeting.generation == 8
    assert meeting.arrive(0, 0, lost=7, address="a:1") == (8, "a:1")
