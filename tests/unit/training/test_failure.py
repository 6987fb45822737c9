"""What a worker says of its own fault: enough to find it, and no more than fits."""

from tidemill import errors
from tidemill.training.worker.failure import MAX_TRACEBACK, describe, is_final, trace


def caught(raising: object) -> BaseException:
    try:
        raising()  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_fault_of_code_has_its_frames_and_what_led_to_it() -> None:
    def inner() -> None:
        raise KeyError("weights")

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError("no weights") from error

    error = caught(outer)
    assert describe(error) == "RuntimeError: no weights"
    found = trace(error)
    assert "in inner" in found
    assert "direct cause" in found
    assert found.endswith("RuntimeError: no weights\n")
    assert not is_final(error)


def test_it_is_bounded_and_keeps_the_end() -> None:
    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError("ü" * 20_000)
        deepest(depth - 1)

    def deepest(depth: int) -> None:  # two, because frames that repeat are folded
        deeper(depth)

    found = trace(caught(lambda: deeper(150)))
    assert len(found.encode()) <= MAX_TRACEBACK
    assert found.startswith("…\n")
    assert 'raise ValueError("ü"' in found, "the frame next to the fault is there"
    assert "ValueError: üüü" in found
    assert len(describe(caught(lambda: deeper(0)))) <= 4096


def test_what_was_foreseen_is_told_in_words_alone() -> None:
    def refuse() -> None:
        raise errors.Invalid("the data set has no labels", reason="NO_LABELS")

    error = caught(refuse)
    assert describe(error) == str(error)
    assert trace(error) == ""
    assert is_final(error)


def test_workers_that_were_late_would_be_late_again() -> None:
    assert is_final(errors.DeadlineExceeded("worker 1 did not push", reason="STRAGGLERS"))
    assert not is_final(errors.DeadlineExceeded("a call took long"))
