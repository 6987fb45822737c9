"""The proxy: forwards connections to one address, at a rate that all of them share, each direction by itself.

Run with `-m`, it says its port, and answers each line with the bytes that have passed, until its input ends.
"""

import argparse
import socket
import threading
import time
from contextlib import suppress

from scripts.benchmarks.line.bucket import TokenBucket
from scripts.benchmarks.measuring.processes import lines, told

PIECE = 64 << 10
BUFFER = 256 << 10
"""Of the sockets: what lies there has not passed yet, as in the queue of a network card."""


class Direction:
    """One way through the line. Safe for threads.

    Args:
        rate: bytes a second; 0 = as many as there are.
        burst: bytes.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._lock = threading.Lock()
        self._bucket = TokenBucket(rate, burst, time.monotonic) if rate else None
        self.passed = 0
        """Bytes so far."""

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Carry what comes until there is no more, and say so to the other end."""
        buffer = memoryview(bytearray(PIECE))
        with suppress(OSError):
            while got := source.recv_into(buffer):
                with self._lock:
                    self.passed += got
                    pause = self._bucket.take(got) if self._bucket else 0.0
                if pause:
                    time.sleep(pause)
                target.sendall(buffer[:got])
            target.shutdown(socket.SHUT_WR)


class Proxy:
    """Listens, and carries.

    Args:
        target: `host:port`.
        rate: bytes a second each way; 0 = as many as there are.
        burst: bytes.
    """

    def __init__(self, target: str, rate: float, burst: float) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self.up, self.down = Direction(rate, burst), Direction(rate, burst)
        # Connections have the buffers of whoever accepted them.
        self._listener = socket.socket()
        self._shrink(self._listener)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Take connections for ever."""
        while True:
            near, _ = self._listener.accept()
            far = socket.socket()
            self._shrink(far)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, source, to in ((self.up, near, far), (self.down, far, near)):
                threading.Thread(target=way.carry, args=(source, to), daemon=True).start()

    def _shrink(self, end: socket.socket) -> None:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            end.setsockopt(socket.SOL_SOCKET, option, BUFFER)


def main() -> None:
    """Carry until the benchmark goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--rate", type=float, required=True, help="bytes a second each way; 0 = no limit")
    parser.add_argument("--burst", type=float, default=128 << 10, help="bytes")
    options = parser.parse_args()
    proxy = Proxy(options.target, options.rate, options.burst)
    threading.Thread(target=proxy.serve, daemon=True).start()
    told(port=proxy.port)
    for _ in lines():
        told(up=proxy.up.passed, down=proxy.down.passed)


if __name__ == "__main__":
    main()
