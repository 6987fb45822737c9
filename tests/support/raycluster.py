"""A Ray cluster of several raylets on this machine, in a network namespace of its own.

Ray listens on all interfaces whatever it is told, so it gets a namespace that has a loopback interface alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.training import children, lives
from tests.support.venvs import venv

START_SECONDS = 60
HEAD = "127.0.0.1:6379"
_SMALL = ("--disable-usage-stats", "--object-store-memory=80000000")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}


class Namespace:
    """A network namespace, held by a process that does nothing else."""

    def __init__(self, folder: Path) -> None:
        own = ["--user", "--map-root-user"] if os.geteuid() else []
        self._holder = subprocess.Popen(
            ["unshare", *own, "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            _, said = self._holder.communicate()
            raise AssertionError(
                f"Ray's tests need a network namespace, and this machine allows none ({said.strip()}): run them as "
                "root, or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1); install unshare and "
                "nsenter (package util-linux) and ip (package iproute2)"
            )
        user = ["--user", "--preserve-credentials"] if own else []
        self.prefix = ["nsenter", f"--target={self._holder.pid}", "--net", *user]
        """Begins the command line of whatever is to run inside."""

    def inside(self, python: Path, script: Path) -> Path:
        """A program that is `python`, but inside."""
        script.write_text(f'#!/bin/sh\nexec {" ".join(self.prefix)} {python} "$@"\n')
        script.chmod(0o755)
        return script

    def close(self) -> None:
        """Let go of it."""
        self._holder.communicate()


@dataclass
class Node:
    """A raylet with what belongs to it."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> list[int]:
        """Kill all that makes up the node at once, as when its machine loses power; what was killed."""
        pids = kill_tree(self.process.pid)
        self.process.wait()
        return pids


@dataclass
class Cluster:
    """Raylets that run."""

    folder: Path
    namespace: Namespace
    ray: Path
    python: Path
    """A Python with Ray, inside of the namespace."""
    nodes: list[Node] = field(default_factory=list)

    def options(self, **options: str) -> tuple[str, ...]:
        """Options of the launcher for workers on this cluster."""
        known = {"address": HEAD, "python": str(self.python), "worker_python": sys.executable, "strategy": "SPREAD"}
        return tuple(f"{name}={value}" for name, value in (known | options).items())

    def start(self, *arguments: str) -> Node:
        """Start another node."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self.namespace.prefix, str(self.ray), "start", "--block", *_SMALL, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_QUIET},
                start_new_session=True,
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node

    def started(self, node: Node) -> None:
        """Wait until a node runs."""

        def runs() -> bool:
            assert node.process.poll() is None, node.log.read_text()[-2000:]
            return b"block forever" in node.log.read_bytes()

        _wait(runs, START_SECONDS)

    def close(self) -> None:
        """End all nodes, the head last."""
        pids = [pid for node in self.nodes for pid in _descendants(node.process.pid)]
        for node in reversed(self.nodes):
            node.kill()
        _wait(lambda: not any(lives(pid) for pid in pids), 10)
        self.namespace.close()


@contextlib.contextmanager
def ray_cluster(folder: Path, *, nodes: int = 2, cpus: int = 1) -> Iterator[Cluster]:
    """A cluster of so many nodes with so many CPUs each."""
    python = venv("ray")
    namespace = Namespace(folder)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # for the paths of sockets
        cluster = Cluster(folder, namespace, python.with_name("ray"), namespace.inside(python, folder / "python"))
        try:
            head = ["--head", f"--port={HEAD.rpartition(':')[2]}", f"--temp-dir={short}", "--include-dashboard=false"]
            cluster.started(cluster.start(*head, f"--num-cpus={cpus}"))
            others = [cluster.start(f"--address={HEAD}", f"--num-cpus={cpus}") for _ in range(nodes - 1)]
            for node in others:
                cluster.started(node)
            yield cluster
        finally:
            cluster.close()


def kill_tree(pid: int) -> list[int]:
    """Kill a process and all that it has started, directly or not; what was killed."""
    pids = _descendants(pid)
    for each in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return pids


def ancestors(pid: int) -> list[int]:
    """The process that has started this one, the one that has started that, and so on."""
    found = []
    with contextlib.suppress(OSError):
        while pid > 1:
            status = Path(f"/proc/{pid}/status").read_text()
            pid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))
            found.append(pid)
    return found


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [pid, *(below for child in children(pid) for below in _descendants(child))]
    return []


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {condition}"
        time.sleep(0.02)
