"""One worker on a node of a Ray cluster: started by exec, its output kept, ended with all that it has started."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tidemill import config
from tidemill.training.launchers.local import INHERITED, INHERITED_PREFIXES

CHUNK = 256 << 10
"""Most bytes of output that are handed out at once."""
_DRAIN = 2.0
"""Seconds to wait for the rest of the output once a worker has ended."""
_LOOK = 1.0
"""Longest time between two looks at whether anybody still asks for the worker, in seconds."""


class Agent:
    """A Ray actor that has one worker as its child; it ends itself when nobody asks for the worker any more.

    Args:
        job: uid of the job; `<job>/<handle>` is the actor's name.
        name: the actor's name.
        gang: name of the placement group that it runs in.
        bundle: its place there.
        abandoned: seconds without anybody who reads, after which it ends the worker and itself.
        limit: bytes of output that are kept.
    """

    def __init__(self, *, job: str, name: str, gang: str, bundle: int, abandoned: float, limit: int) -> None:
        self._job, self._name, self._gang, self._bundle = job, name, gang, bundle
        self._abandoned = abandoned
        self._limit = limit
        self._changed = threading.Condition()
        self._kept = bytearray()
        self._begin = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._stopping = False
        self._deadline = float("inf")
        self._readers = 0
        self._asked = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(
        self, command: Sequence[str], python: str | None, environment: Mapping[str, str], scratch: str
    ) -> dict[str, Any]:
        """Start the worker, once; `pid`, or in `refused` why it cannot be started and in `final` whether for ever.

        Args:
            command: program and arguments.
            python: the program in place of the command's; "" = the Python of this node, None = the command's.
            environment: variables of the worker beside those of this node.
            scratch: directory in which it gets one of its own; "" = the one for temporary files.
        """
        program = list(command) if python is None else [python or sys.executable, *command[1:]]
        try:
            folder = tempfile.mkdtemp(prefix=f"tidemill-{self._name.replace('/', '-')}-", dir=scratch or None)
        except OSError as error:
            return {"refused": f"{scratch or 'temporary files'}: {error.strerror}", "final": False}
        try:
            child = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**_inherited(), "TIDEMILL_WORKER_DATA": folder, "TMPDIR": folder, **environment},
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            final = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
            return {"refused": f"a worker cannot be started: {error.strerror}", "final": final}
        self._child = child
        pump = threading.Thread(target=self._pump, args=(child,), daemon=True)
        pump.start()
        threading.Thread(target=self._wait, args=(child, pump, folder), daemon=True).start()
        return {"pid": child.pid}

    def describe(self) -> dict[str, Any]:
        """What there is to know of it. Whether it was told to end, too: its exit status says nothing then."""
        with self._changed:
            return {
                "pid": self._child.pid if self._child else 0,
                "stopping": self._stopping,
                "gang": self._gang,
                "bundle": self._bundle,
            }

    def read(self, position: int, seconds: float) -> tuple[int, bytes, int | None]:
        """Output from `position` on, waited for so long: where it begins, what it is, and the exit status at its end.

        It begins later than asked for when what was asked for is no longer kept.
        """
        with self._changed:
            self._readers += 1
            try:
                self._changed.wait_for(lambda: self._end > position or self._status is not None, seconds)
                begin = max(position, self._begin)
                data = bytes(self._kept[begin - self._begin : begin - self._begin + CHUNK])
                return begin, data, self._status if begin + len(data) >= self._end else None
            finally:
                self._readers -= 1
                self._asked = time.monotonic()

    def stop(self, grace: float) -> None:
        """Ask the worker to end, and have it killed in `grace` seconds."""
        with self._changed:
            first, self._stopping = not self._stopping, True
            self._deadline = min(self._deadline, time.monotonic() + grace)
            self._changed.notify_all()
        if first and grace > 0:
            self._signal(signal.SIGTERM)

    @property
    def _end(self) -> int:
        return self._begin + len(self._kept)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._status is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def _pump(self, child: "subprocess.Popen[bytes]") -> None:
        assert child.stdout is not None
        while data := os.read(child.stdout.fileno(), 1 << 16):
            with self._changed:
                self._kept += data
                surplus = len(self._kept) - self._limit
                if surplus > 0:
                    del self._kept[:surplus]
                    self._begin += surplus
                self._changed.notify_all()

    def _wait(self, child: "subprocess.Popen[bytes]", pump: threading.Thread, folder: str) -> None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until its group is ended
        self._signal(signal.SIGKILL)  # what it has started must not go on without it
        status = child.wait()
        pump.join(_DRAIN)
        shutil.rmtree(folder, ignore_errors=True)
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def _watch(self) -> None:
        """Kill the worker when its time to end is over, and end all when nobody has asked for it for too long."""
        while True:
            with self._changed:
                now = time.monotonic()
                left = self._abandoned - (now - self._asked) if not self._readers else self._abandoned
                self._changed.wait(max(0.01, min(_LOOK, left, self._deadline - now)))
                now = time.monotonic()
                due = now >= self._deadline
                alone = not self._readers and now - self._asked >= self._abandoned
                if due:
                    self._deadline = float("inf")
            if due or alone:
                self._signal(signal.SIGKILL)
            if alone:
                self._leave()

    def _leave(self) -> None:
        """End this process; the last one of the job gives back what is reserved for it.

        The one whose name is the first waits for the others. It may be that they are looked after, and only this one
        is not: then it stays.
        """
        import ray

        with self._changed:
            self._stopping = True
            self._changed.wait_for(lambda: self._child is None or self._status is not None, _DRAIN * 2)
        others = [name for name in ray.util.list_named_actors() if name.startswith(f"{self._job}/")]
        if self._name != min([*others, self._name]):
            os._exit(0)
        if set(others) - {self._name}:
            with self._changed:
                self._asked = time.monotonic() - self._abandoned + _LOOK
            return
        for name in groups_of(self._job):
            with suppress(ValueError):  # another one was faster
                ray.util.remove_placement_group(ray.util.get_placement_group(name))
        time.sleep(_LOOK)  # that ends this process, too
        os._exit(0)


def groups_of(job: str) -> list[str]:
    """Names of the placement groups of a job, in the namespace of this process; "" = of all jobs."""
    import ray

    space = ray.get_runtime_context().namespace
    prefix = f"{space}/{job}/" if job else f"{space}/"
    table = ray.util.placement_group_table().values()
    return [row["name"] for row in table if row["name"].startswith(prefix) and row["state"] != "REMOVED"]


def _inherited() -> dict[str, str]:
    own = config.environ()
    return {
        name: own[name]
        for name in own
        if name in INHERITED or (name.startswith(INHERITED_PREFIXES) and not name.startswith("TIDEMILL_"))
    }
