"""A server over models of all kinds, as experiments with hostile requests find it, and what of it must not change."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.support import onnxmodels, pythonmodels
from tests.support.chaos.experiment import Report
from tests.support.chaos.servers import Process, running
from tests.support.modelfolders import ONNX, Folder, ensemble
from tests.support.sequences import accumulator
from tests.support.up import free_offset
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.cli.stack import INFERENCE, OIP_REST

FAULTS, DEAD, TOLD, GROWN, OPENED, LEFT = (
    "answers that blame the server",
    "times that it did not answer",
    "texts that tell about the inside",
    "growth of memory in percent",
    "files opened outside",
    "shared memory left behind",
)
MODELS = ("scale", "batched", "add", "labels", "text", "sums", "chain", "repeat", "add_sub")
BATCHED = 'platform: "onnxruntime_onnx"\nmax_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 100 }\n'
LABELS = """platform: "onnxruntime_onnx"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }
"""
SUMS = """backend: "onnxruntime"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "sum" data_type: TYPE_INT32 dims: 1 }
sequence_batching {
  direct {}
  state { input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: 1 }
}
"""
REPEAT = """backend: "python"
input { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }
model_transaction_policy { decoupled: true }
"""
PAIR = 'backend: "python"\n' + "".join(
    f'{side} {{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }}\n'
    for side, name in (("input", "INPUT0"), ("input", "INPUT1"), ("output", "OUTPUT0"), ("output", "OUTPUT1"))
)
_INSIDE = re.compile(r"Traceback|\b0x[0-9a-f]{6}|/dev/shm|object at|\.py\b|Errno|/tmp/|/proc/|site-packages")
_TOLERANCE = 5.0


def repository(root: Path) -> None:
    """Write a repository of models of all kinds."""
    folder = Folder(root)
    folder.version("scale", 1, onnxmodels.scale(2))
    folder.version("batched", 1, onnxmodels.scale(3), BATCHED)
    folder.version("add", 1, onnxmodels.sums(), f"{ONNX}response_cache {{ enable: true }}\n")
    folder.version("labels", 1, onnxmodels.scale(1), LABELS)
    folder.put("labels", {"labels.txt": "cat\ndog\n"})
    folder.version("text", 1, onnxmodels.identity(8, ("n",)), ONNX)
    folder.version("sums", 1, accumulator(), SUMS)
    folder.put("chain", {"config.pbtxt": ensemble("scale", "batched"), "1/.keep": b""})
    folder.put("repeat", {"config.pbtxt": REPEAT, "1/model.py": pythonmodels.REPEAT})
    folder.put("add_sub", {"config.pbtxt": PAIR, "1/model.py": pythonmodels.ADD_SUB})


class Hostile(Process):
    """`tidemill serve` with two processes that answer, explicit control and shared memory of clients.

    Args:
        work: directory for everything.
    """

    def __init__(self, work: Path) -> None:
        repository(work / "models")
        self.work = work
        offset = free_offset()
        self.port, self.rest = INFERENCE + offset, OIP_REST + offset
        command = [sys.executable, "-m", "tidemill.cli", "serve", "--model-repository", str(work / "models")]
        command += ["--model-control", "explicit", "--load-model", "*", "--allow-client-shm"]
        command += ["--port-offset", str(offset)]
        (work / "tmp").mkdir()
        environment = {"TIDEMILL_INFERENCE_FRONTS": "2", "TMPDIR": str(work / "tmp")}
        environment["TIDEMILL_INFERENCE_RESPONSE_CACHE_BYTES"] = str(1 << 20)
        super().__init__(command, work / "serve.log")
        self._environment |= environment

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.port}"

    def elsewhere(self) -> list[str]:
        """Files that its processes have open and that are neither theirs nor parts of Python."""
        mine: tuple[str, ...] = (str(self.work), sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
        mine += ("/usr/", "/lib", "/dev/", "/proc/", "/sys/", "/memfd:")
        found = set()
        for pid in self.pids():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(link)
                except OSError:
                    continue
                if target.startswith("/") and not target.startswith(mine):
                    found.add(target)
        return sorted(found)

    async def ready(self) -> None:
        """Return when all of its models are."""

        def all_ready() -> bool:
            with grpc.insecure_channel(self.address) as channel:
                stub = pg.GRPCInferenceServiceStub(channel)
                try:
                    return all(stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=5).ready for name in MODELS)
                except grpc.RpcError:
                    return False

        await until(all_ready, 120, f"all models are ready; the log is {self.log}")


class Watch:
    """What is seen of a server while hostile requests come.

    Args:
        server: which.
        total: how many requests there will be.
        leak: adds so many bytes to each measurement of memory, rising: a planted fault.
    """

    def __init__(self, server: Hostile, total: int, leak: int = 0) -> None:
        self._server = server
        self._total = total
        self._leak = leak
        self._shared = set(os.listdir("/dev/shm"))
        self._pids = [pid for pid in server.pids() if not _of_a_model(pid)]
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.told: list[str] = []
        self.dead = 0
        self.elsewhere: set[str] = set()
        self.memory: list[tuple[int, int]] = []

    def answered(self, outcome: str, text: str, request: object, *, fault: bool) -> None:
        """One request has been answered so."""
        self.outcomes[outcome] += 1
        if fault:
            self.faults.append(f"{outcome}: {text[:200]}: {str(request)[:300]}")
        elif (inside := _INSIDE.search(text)) and inside.group() not in str(request):
            self.told.append(text[:300])

    def look(self, number: int) -> None:
        """It must be alive; take its memory and its files."""
        try:
            with grpc.insecure_channel(self._server.address) as channel:
                alive = pg.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=10).live
        except grpc.RpcError:
            alive = False
        self.dead += not alive
        self.memory.append((number, self._server.resident() + self._leak * number))
        self.elsewhere |= set(self._server.elsewhere())

    def report(self) -> Report:
        """What has been seen, judged."""
        report = Report()
        report.none(FAULTS, len(self.faults))
        report.none(DEAD, self.dead)
        report.none(TOLD, len(self.told))
        report.none("processes that have ended", len(set(self._pids) - set(self._server.pids())))
        warm = [size for number, size in self.memory if number > 0.2 * self._total]
        half = len(warm) // 2
        first, second = (sum(part) / max(1, len(part)) for part in (warm[:half], warm[half:]))
        report.at_most(GROWN, 100 * (second - first) / max(1, first), _TOLERANCE)
        report.none(OPENED, len(self.elsewhere))
        report.none(LEFT, len(set(os.listdir("/dev/shm")) - self._shared))
        report.figures = {
            "outcomes": dict(self.outcomes.most_common()),
            "MiB, first half": round(first / 2**20, 1),
            "MiB, second half": round(second / 2**20, 1),
            "faults": self.faults[:5],
            "told": self.told[:5],
            "elsewhere": sorted(self.elsewhere)[:5],
        }
        return report


def _of_a_model(pid: int) -> bool:
    """Whether a process runs one model and so ends when that is unloaded."""
    return b"isolation.child" in Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def shared_object(size: int = 64) -> Iterator[str]:
    """The key of an object in shared memory."""
    path = Path("/dev/shm") / f"hostiletest-{os.getpid()}"
    path.write_bytes(bytes(size))
    try:
        yield path.name
    finally:
        path.unlink()


@contextmanager
def hostile(work: Path) -> Iterator[Hostile]:
    """A running server."""
    server = Hostile(work)
    with running(server):
        yield server
