"""The line of limited rate: its token bucket under a clock that the test moves, and the proxy with real connections."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmarks.line.bucket import TokenBucket
from scripts.benchmarks.measuring.processes import Helper
from tests.support.clock import ManualClock


def bucket(rate: float = 1000.0, burst: float = 100.0) -> tuple[TokenBucket, ManualClock]:
    clock = ManualClock()
    return TokenBucket(rate, burst, clock.monotonic), clock


def test_a_burst_passes_at_once_and_what_is_beyond_it_waits() -> None:
    limit, _ = bucket()
    assert limit.take(100) == 0
    assert limit.take(50) == pytest.approx(0.05)
    assert limit.take(50) == pytest.approx(0.1)


def test_it_fills_at_its_rate_and_never_beyond_the_burst() -> None:
    limit, clock = bucket()
    limit.take(100)
    clock.jump(0.05)
    assert limit.take(50) == 0
    clock.jump(3600)
    assert limit.take(100) == 0
    assert limit.take(1) == pytest.approx(0.001)


@given(
    pieces=st.lists(st.integers(1, 500), min_size=1, max_size=50),
    late=st.floats(0, 0.2),
)
def test_the_rate_holds_however_late_who_waits_comes_back(pieces: list[int], late: float) -> None:
    limit, clock = bucket()
    passed = 0
    for piece in pieces:
        pause = limit.take(piece)
        if pause:
            clock.jump(pause + late)
        passed += piece
        assert passed <= 100 + 1000 * clock.monotonic() + 1e-6


def test_who_is_told_to_wait_a_little_too_long_catches_up() -> None:
    limit, clock = bucket()
    for _ in range(100):
        pause = limit.take(50)
        clock.jump(pause + 0.01 if pause else 0)
    # 5000 bytes, of which 100 are the burst, at 1000 a second; the lateness of one wait is made good by the next.
    assert clock.monotonic() == pytest.approx(4.9, abs=0.02)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
def test_it_refuses_what_is_no_rate(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(rate, burst, ManualClock().monotonic)


def test_the_proxy_carries_every_byte_both_ways_and_counts_them() -> None:
    sent = bytes(range(256)) * 1000
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with Helper("scripts.benchmarks.line.proxy", address, "--rate=20e6") as proxy:
            port = proxy.hear()["port"]
            with socket.create_connection(("127.0.0.1", port)) as near:
                far, _ = server.accept()
                with far:
                    near.sendall(sent)
                    near.shutdown(socket.SHUT_WR)
                    assert b"".join(iter(lambda: far.recv(1 << 16), b"")) == sent
                    far.sendall(sent[:1000])
                    far.shutdown(socket.SHUT_WR)
                    assert b"".join(iter(lambda: near.recv(1 << 16), b"")) == sent[:1000]
            assert proxy.ask() == {"up": len(sent), "down": 1000}
