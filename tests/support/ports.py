"""Free ports of loopback for servers that cannot choose one themselves."""

import random
import socket
from contextlib import ExitStack

RANGE = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections: after a restart a server finds its own again."""


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 on which nobody listened just now."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().choice(RANGE)
            candidate = stack.enter_context(socket.socket())
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found
