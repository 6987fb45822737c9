"""A process of services that is watched while it is attacked: what it opens, what it starts, what memory it takes."""

import ctypes
import json
import os
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
_IN_OPEN, _IN_MODIFY, _IN_CREATE, _IN_DELETE, _IN_ACCESS = 0x20, 0x2, 0x100, 0x200, 0x1
_PROCESS = ("stat", "status", "statm", "limits", "fd", "task", "cgroup", "mountinfo", "maps")
_OWN = (
    *{sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *(str(ROOT / name) for name in ("libs", "services"))},
    *(str(ROOT / "tests"), *(f"/proc/self/{name}" for name in _PROCESS), "/proc/stat", "/proc/cpuinfo"),
    *("/dev/null", "/dev/urandom", "/sys/devices/system", "/sys/fs/cgroup"),
    *("/etc/hosts", "/etc/localtime", "/usr/share/zoneinfo", "/etc/mime.types"),
)
"""What a process of ours may open besides its data: the interpreter, the code, and facts about the machine."""


class Watched:
    """Services in one process.

    Args:
        folder: an empty directory. The services have `data` and `models` in it to themselves; the working directory
            `empty` and the directory `outside`, with files that an attack may want, are none of theirs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models, self.outside = folder / "models", folder / "outside"
        for name in ("data", "models", "outside", "empty"):
            (folder / name).mkdir()
        for name in ("w.bin", "model.onnx", "config.pbtxt"):
            (self.outside / name).write_bytes(b"\0" * 64)
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def address(self, name: str) -> str:
        """Where a service is."""
        return f"127.0.0.1:{self.ports[name]}"

    def start(self, *names: str) -> None:
        """Serve these, and return when all are there."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.watched_services", str(self.folder), *names],
                cwd=self.folder / "empty",
                env={**variables, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        watchdog = threading.Timer(START_SECONDS, self._process.kill)
        watchdog.start()
        said = self._process.stdout.readline()
        watchdog.cancel()
        if not said:
            self.stop()
            raise AssertionError((self.folder / "log").read_text()[-4000:])
        self.ports = json.loads(said)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            process = self._process
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def mark(self) -> int:
        """Where the events end now."""
        return (self.folder / "events").stat().st_size

    def events(self, since: int = 0) -> list[tuple[str, ...]]:
        """What it has opened, made and started since a `mark`: names of events, and paths as they were given."""
        with (self.folder / "events").open() as file:
            file.seek(since)
            return [tuple(json.loads(line)) for line in file]

    def trespasses(self, since: int = 0) -> list[tuple[str, ...]]:
        """The events since a `mark` that are about none of its own files, nor of the interpreter's."""
        return [event for event in self.events(since) if not self._own(*event)]

    def _own(self, name: str, *about: str) -> bool:
        if name.startswith(("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess", "os.fork", "urllib")):
            return False
        if name == "os.listdir" and about[0] == str(ROOT):
            return True  # the import of a module looks there
        if name in ("ctypes.dlopen", "socket.getaddrinfo"):
            return "/" not in about[0] or self._inside(about[0])
        return all(self._inside(path) for path in about[: 2 if name in ("os.rename", "os.link") else 1] if path)

    def _inside(self, given: str) -> bool:
        if given in (":memory:", ""):
            return True
        path = os.path.normpath(os.path.join(self.folder / "empty", given.removeprefix("file:")))
        own = (str(self.folder / "data"), str(self.folder / "models"), *_OWN)
        # `/proc/self` is another's by the time that this is asked.
        real = path if path.startswith("/proc/self/") else os.path.realpath(path)
        return all(one.startswith(own) for one in (path, real))

    def reset_peak(self) -> int:
        """Forget the peak of its memory; bytes that are resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak(self) -> int:
        """Most bytes that were resident since `reset_peak`."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
        raise AssertionError("the process has ended")


@contextmanager
def watched(folder: Path, *names: str, prepare: Any = None) -> Iterator[Watched]:
    """Services that run while the block does.

    Args:
        folder: an empty directory.
        names: `registry`, `artifacts`, `parameters`, `training`, `inference`, `serving`, `gateway`, in this order.
        prepare: called with the `Watched` before it starts.
    """
    made = Watched(folder)
    if prepare is not None:
        prepare(made)
    try:
        made.start(*names)
        yield made
    finally:
        made.stop()


class Touched:
    """Sees by the kernel what of a directory is opened, by whomever and whatever language: as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _IN_OPEN | _IN_MODIFY | _IN_CREATE | _IN_DELETE | _IN_ACCESS
        if self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def __enter__(self) -> "Touched":
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """Names of the files that were touched since the last call; "" is the directory itself."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        found = []
        while data:
            length = struct.unpack_from("iIII", data)[3]
            found.append(os.fsdecode(data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
        return found
