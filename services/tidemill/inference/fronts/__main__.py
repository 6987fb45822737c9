"""A front: `python -m tidemill.inference.fronts FD`, started by the first process alone."""

import asyncio
import signal
import socket
import sys

from tidemill.inference.fronts.front import serve
from tidemill.inference.fronts.lines import LIMIT, Lines


async def _main(number: int) -> int:
    # The first process says when to end: by closing its end.
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, lambda: None)
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=number), limit=LIMIT)
    return await serve(Lines(reader, writer))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(int(sys.argv[1]))))
