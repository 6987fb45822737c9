"""Several processes on one port."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tidemill.errors import Unavailable
from tidemill.rpc import roundrobin
from tidemill.rpc.spread import check_free, deal_out

LISTEN = """
import socket, sys
from tidemill.rpc import roundrobin
from tidemill.rpc.spread import deal_out
if sys.argv[2] == "refused":
    roundrobin.platform.machine = lambda: "unknown"
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(64)
    print("listens", flush=True)
    sys.stdin.readline()
    assert deal_out(int(sys.argv[1]), 2)
    print("deals", flush=True)
    sys.stdin.readline()
    listener.setblocking(False)
    count = 0
    try:
        while True:
            listener.accept()[0].close()
            count += 1
    except BlockingIOError:
        print(count, flush=True)
"""


def said(process: "subprocess.Popen[str]", line: str = "\n") -> str:
    """The next thing that a process says, after it was sent a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline().strip()


def privileged() -> bool:
    """Whether the kernel takes programs of ours here."""
    try:
        os.close(roundrobin.load(2))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("rights", ["ours", "refused"])
def test_connections_go_round(rights: str) -> None:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        command = [sys.executable, "-c", LISTEN, str(port), rights]
        with ExitStack() as stack:
            pair = [
                stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                for _ in range(2)
            ]
            assert [said(process, "") for process in pair] == ["listens"] * 2
            assert [said(process) for process in pair] == ["deals"] * 2
            for _ in range(60):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            counts = [int(said(process)) for process in pair]
    assert sum(counts) == 60
    if rights == "ours" and privileged():
        assert counts == [30, 30]
    else:  # by ports, of which the kernel skips some: about even
        assert min(counts) >= 10


def test_a_port_that_somebody_shares_is_not_free() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Unavailable, match="is the port in use"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


def test_one_process_deals_nothing_out() -> None:
    assert not deal_out(1, 1)
    assert not deal_out(1, 2)


def test_dealing_out_keeps_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert not deal_out(1, 2)
    assert set(os.listdir("/proc/self/fd")) == before
