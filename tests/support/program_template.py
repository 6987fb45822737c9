"""A process from which workers are forked that run any program: `... python -c CODE ARGUMENT... FD SECONDS`."""

import socket
import sys

from tidemill.training.worker.template import serve


def main() -> None:
    """Start workers, and become them."""
    _, _, code, *arguments, fd, idle = sys.argv[1:]
    if serve(socket.socket(fileno=int(fd)), float(idle)) is not None:
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the test's own


if __name__ == "__main__":
    main()
