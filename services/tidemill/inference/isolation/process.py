"""One spawned process of a model."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from tidemill import config
from tidemill.errors import Unavailable
from tidemill.inference.isolation.channel import Channel
from tidemill.inference.isolation.output import Output

MODULE = "tidemill.inference.isolation.child"
_DRAIN = 2.0


class Process:
    """A process, leader of its own session. It dies with the thread that has started it.

    Nothing of this process runs in it: it is started by exec alone, with one end of a socket pair, and without our own
    settings in its environment, as these may hold secrets.

    Args:
        model: name of the model, for the log.

    Raises:
        Unavailable: it cannot be started.
    """

    def __init__(self, model: str) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._popen = subprocess.Popen(
                    [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise Unavailable(f"a process cannot be started: {error.strerror}", reason="SPAWN_FAILED") from error
        self.channel = Channel(ours)
        self.gone = os.pidfd_open(self._popen.pid)
        assert self._popen.stdout is not None
        self._output = Output(self._popen.stdout, model)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            os.kill(self._popen.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it has started. Not to be called after `reap`."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def reap(self) -> str:
        """End it and what it has started, free what belongs to it, and say how it has ended."""
        self.kill()  # one that is ending by itself keeps its own status
        status = self._popen.wait()
        self._output.join(_DRAIN)
        self.channel.close()
        os.close(self.gone)
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in config.environ().items() if not name.startswith("TIDEMILL_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}
