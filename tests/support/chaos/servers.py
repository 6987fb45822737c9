"""Inference servers and Envoy as processes that can be killed, stopped and started again."""

import asyncio
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import free_ports
from tests.support.wait import until
from tidemill.cli.envoy import Balancer

_PR_SET_CHILD_SUBREAPER = 36
_HELD = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


class Process:
    """A program that can be started again and again.

    Args:
        command: what is run.
        log: file that its output is added to.
        cores: on which it runs; empty = all that this process may use.
    """

    def __init__(self, command: list[str], log: Path, cores: Collection[int] = ()) -> None:
        self._command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command] if cores else command
        self.log = log
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what was started before has ended."""
        assert self._process is None
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def alive(self) -> bool:
        """Whether it was started and still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def pids(self) -> list[int]:
        """Of the process and all that it has started."""
        return family(self.pid)

    def resident(self) -> int:
        """Memory of all of them in bytes; pages that several use count in part."""
        return sum(proportional(pid) for pid in self.pids())

    async def at_rest(self) -> int:
        """`resident`, once it has not changed by more than 1 % for a second."""
        seen = [self.resident()]

        def rests() -> bool:
            seen.append(self.resident())
            last = seen[-25:]
            return len(last) == 25 and max(last) <= 1.01 * min(last)

        await until(rests, 30, "memory is at rest")
        return seen[-1]

    async def kill(self) -> None:
        """Kill it and all that it has started, and wait until they are gone."""
        if self._process is None:
            return
        pids = self.pids()
        for pid in pids:
            end(pid, signal.SIGKILL)
        await self._gone(pids, 30)

    async def stop(self, within: float = 60.0) -> int:
        """Let it end by itself, as a supervisor would; its exit status."""
        assert self._process is not None
        pids = self.pids()
        self._process.terminate()
        return await self._gone(pids, within)

    async def _gone(self, pids: list[int], within: float) -> int:
        assert self._process is not None
        status = await asyncio.to_thread(self._process.wait, within)
        await until(lambda: not any(_runs(pid) for pid in pids), within, "all of its processes have ended")
        self._process = None
        return status


class Server(Process):
    """`python -m tidemill.inference` over a model repository, on a port that it keeps.

    Args:
        repository: directory of models.
        log: file that its output is added to.
        cores: on which it runs; empty = all that this process may use.
        settings: of the service, by name.
    """

    def __init__(self, repository: Path, log: Path, *, cores: Collection[int] = (), **settings: object) -> None:
        (self.port,) = free_ports(1)
        given = {
            "model_repository": repository,
            "port": self.port,
            "second_port": "",
            "ops_port": 0,
            "log_style": "text",
            **settings,
        }
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        super().__init__([sys.executable, "-m", "tidemill.inference", *flags], log, cores)

    @property
    def address(self) -> str:
        """Where it is called."""
        return f"127.0.0.1:{self.port}"

    async def healthy(self, within: float = 60.0) -> None:
        """Return when it says that it serves."""

        async def serves() -> bool:
            assert self.alive, f"it has ended:\n{self.log.read_text()[-2000:]}"
            async with grpc.aio.insecure_channel(self.address) as channel:
                try:
                    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
                except grpc.aio.AioRpcError:
                    return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await until(serves, within, f"{self.address} serves; its log is {self.log}")


class Envoy(Process):
    """Envoy in front of servers, with the configuration that `tidemill envoy` prints.

    Args:
        servers: in front of which.
        work: directory for its configuration and log.
        retries, check_seconds: see `Balancer`.
    """

    def __init__(self, servers: list[Server], work: Path, retries: int = 3, check_seconds: float = 1.0) -> None:
        self.port, self._admin = free_ports(2)
        binary = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        assert binary, "envoy is not installed: it comes with the extra dev"
        balancer = Balancer(
            upstreams=[("127.0.0.1", server.port) for server in servers],
            listen=("127.0.0.1", self.port),
            admin=("127.0.0.1", self._admin),
            retries=retries,
            check_seconds=check_seconds,
        )
        self.linger_seconds = balancer.linger_seconds
        configuration = work / "envoy.json"
        configuration.write_text(json.dumps(balancer.bootstrap()))
        flags = ["--concurrency", "1", "--log-level", "warn", "--base-id", str(self.port)]
        super().__init__([binary, "-c", str(configuration), *flags], work / "envoy.log")

    @property
    def address(self) -> str:
        """Where it is called."""
        return f"127.0.0.1:{self.port}"

    async def sends_to(self, *servers: Server) -> None:
        """Return when exactly these servers get calls."""
        wanted = {server.port for server in servers}
        await until(lambda: self._healthy(wanted), 60, f"envoy sends to {wanted}; its log is {self.log}")

    async def _healthy(self, wanted: set[int]) -> bool:
        try:
            shown = await asyncio.to_thread(self._clusters)
        except OSError:
            return False
        (cluster,) = shown["cluster_statuses"]
        found = {
            host["address"]["socket_address"]["port_value"]
            for host in cluster.get("host_statuses", [])
            if host["health_status"].keys() <= {"eds_health_status"}
        }
        return found == wanted

    def _clusters(self) -> Any:
        url = f"http://127.0.0.1:{self._admin}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Started now; killed at the end if they still run."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process._process is not None:
                for pid in process.pids():
                    end(pid, signal.SIGKILL)
                process._process.wait(30)
                process._process = None


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def adopt() -> None:
    """Become the parent of processes whose own parent ends: so nothing that a server leaves behind gets lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be adopted")


def commands() -> dict[int, str]:
    """Command lines of all that this process has started or adopted and that runs, by pid."""
    found = {}
    for pid in family(os.getpid())[1:]:
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def proportional(pid: int) -> int:
    """Bytes of memory that a process holds, swapped out or not; pages that several have count in part. 0 = it has gone.

    Pages of files do not count: the system takes and gives them as it likes.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_HELD))


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal; nothing when it has gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
