"""Keeps one worker process: writes down what it prints and how it ends, and ends it when told to, or when abandoned.

Run as a file, by exec, in a session of its own: `python -I -S keeper.py FOLDER BYTES SECONDS FD PROGRAM ARGUMENT...`;
or `... FD - PID OUTPUT`, when the worker is already a child of this process and prints to a pipe inherited as OUTPUT.
It imports only the standard library, so that it is small, and needs nobody: it outlives who has started it. In the
folder lie:

    lock      held for as long as the keeper lives; whoever can lock it knows that the keeper has ended
    control   a pipe by name, inherited as FD: takes orders, and tells by its writers whether it is abandoned
    pid       "worker start keeper start": process ids and when they began, in the system's ticks; there once it runs
    error     the error number, when it cannot be started
    output    what the worker prints, at most BYTES of it, and then its end
    status    "code told": its exit status, -n for signal n; told is 1 when it was ended on the service's behalf
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

DRAIN = 2.0
"""Seconds to wait for the rest of the output once the worker has ended: what it has started may keep the pipe open."""
TAIL = 8192
"""Bytes of the end that are kept of an output that is too long."""
_LOOK = 0.25
_READ = 65536
_NEVER = float("inf")
_NEVER_FULL = 1 << 62


class Keeper:
    """One worker and what is known of it.

    Args:
        folder: where its files lie.
        most: bytes of output to keep.
        abandoned: seconds without anybody who looks after the worker, after which it is ended.
        control: where orders come from.
    """

    def __init__(self, folder: str, most: int, abandoned: float, control: int) -> None:
        self._folder = folder
        self._most = most
        self._abandoned = abandoned
        self._control = control
        self._poll = select.poll()
        self._file = os.open(
            os.path.join(folder, "output"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._size = os.fstat(self._file).st_size
        self._left_out = 0
        self._tail = b""
        self._pid = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._is_open = True
        self._orders = b""
        self._told = False
        self._kill_at = _NEVER
        self._alone_since = _NEVER

    def start(self, command: list[str]) -> None:
        """Start the worker. Raises OSError."""
        child = self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        assert child.stdout is not None
        self.take(child.pid, child.stdout.fileno())

    def take(self, pid: int, output: int) -> None:
        """Keep a worker that is started. Raises OSError; it is killed then."""
        self._pid, self._output = pid, output
        own = os.getpid()
        try:
            self._note("pid", f"{self._pid} {began(self._pid)} {own} {began(own)}")
        except OSError:
            self._signal(signal.SIGKILL)
            raise

    def _note(self, name: str, text: str) -> None:
        write(os.path.join(self._folder, name), text)

    def run(self) -> None:
        """Keep the worker until it has ended."""
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for fd in (self._output, self._control, woken):
            self._poll.register(fd, select.POLLIN)
        while os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            for fd, event in self._poll.poll(self._timeout()):
                if fd == self._output:
                    self._copy()
                elif fd == woken:
                    os.read(woken, _READ)
                else:
                    self._listen(event)
            self._look()
        self._end()

    def _timeout(self) -> float:
        """Milliseconds until something has to be done."""
        now = time.monotonic()
        left = min(self._kill_at, self._alone_since + self._abandoned if not self._told else _NEVER) - now
        if self._alone_since < _NEVER:
            left = min(left, _LOOK)
        return max(0.0, min(left, 60.0)) * 1000

    def _look(self) -> None:
        """Do what time asks for."""
        now = time.monotonic()
        if self._alone_since < _NEVER:
            if not _hung_up(self._control):
                self._alone_since = _NEVER
                self._poll.register(self._control, select.POLLIN)
            elif now >= self._alone_since + self._abandoned and not self._told:
                self._write(b"the worker is ended: nobody looks after it any more\n")
                self._stop(5.0)
        if now >= self._kill_at:
            self._signal(signal.SIGKILL)
            self._kill_at = now + 1.0

    def _listen(self, event: int) -> None:
        if event & select.POLLIN:
            *orders, self._orders = (self._orders + os.read(self._control, _READ)).split(b"\n")
            for order in orders:
                self._stop(float(order))
        elif event & select.POLLHUP and self._alone_since == _NEVER:  # it would be reported all the time
            self._alone_since = time.monotonic()
            self._poll.unregister(self._control)

    def _on_term(self, number: int, _: FrameType | None) -> None:
        self._stop(5.0)

    def _stop(self, grace: float) -> None:
        if not self._told:
            self._told = True
            self._signal(signal.SIGTERM)
        self._kill_at = min(self._kill_at, time.monotonic() + grace)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def _copy(self) -> bool:
        """Take what was printed; whether there may be more."""
        data = os.read(self._output, _READ)
        if data:
            self._write(data)
        elif self._is_open:
            self._is_open = False
            self._poll.unregister(self._output)
        return bool(data)

    def _write(self, data: bytes) -> None:
        kept = data[: max(0, self._most - self._size)]
        try:
            written = os.write(self._file, kept) if kept else 0
        except OSError:  # the disk is full: the worker must not care
            written = 0
        self._size += written
        if written < len(data):
            self._left_out += len(data) - written
            self._tail = (self._tail + data[written:])[-TAIL:]

    def _end(self) -> None:
        """The worker has ended, and is not yet forgotten by the system, so its process id is nobody else's."""
        self._signal(signal.SIGKILL)  # what it has started must not go on without it
        status = self._child.wait() if self._child else os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        deadline = time.monotonic() + DRAIN
        rest = select.poll()
        rest.register(self._output, select.POLLIN)
        while rest.poll(max(0.0, deadline - time.monotonic()) * 1000) and self._copy():
            pass
        if self._left_out:
            said = f"\n... {self._left_out - len(self._tail)} bytes are left out here ...\n".encode()
            self._most = _NEVER_FULL
            self._write(said + self._tail)
        self._note("status", f"{status} {int(self._told)}")


def _hung_up(fd: int) -> bool:
    """Whether nobody has a pipe open to write to it."""
    look = select.poll()
    look.register(fd, select.POLLIN)
    return any(event & select.POLLHUP and not event & select.POLLIN for _, event in look.poll(0))


def began(pid: int) -> int:
    """When a process has begun, in the system's ticks; with its id this names it for ever. 0 = there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def write(path: str, text: str) -> None:
    """Make a file, whole or not at all."""
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def main() -> int:
    """Keep a worker from its start to its end."""
    folder, most, abandoned, control, *command = sys.argv[1:]
    keeper = Keeper(folder, int(most), float(abandoned), int(control))
    try:
        if command[0] == "-":
            keeper.take(int(command[1]), int(command[2]))
        else:
            if os.fork() > 0:
                os._exit(0)  # so that nobody has to wait for the keeper's end
            keeper.start(command)
    except OSError as error:
        write(os.path.join(folder, "error"), str(error.errno))
        return 1
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
