"""A server over models of all kinds, as experiments with hostile requests find it, and what of it must not change."""

import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from tests.support import onnxmodels, pythonmodels
from tests.support.chaos.faulty import VARIABLE
from tests.support.chaos.servers import Process, running
from tests.support.modelfolders import ONNX, Folder, ensemble
from tests.support.sequences import accumulator
from tests.support.up import free_offset
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.cli.stack import INFERENCE, OIP_REST

MODELS = ("scale", "batched", "add", "labels", "text", "sums", "chain", "repeat", "add_sub")
SHARED = "hostiletest-"
"""How names of objects in shared memory begin that experiments make."""
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
        fault: planted in it, see `faulty`; "" = none.
    """

    def __init__(self, work: Path, fault: str = "") -> None:
        repository(work / "models")
        self.work = work
        offset = free_offset()
        self.port, self.rest = INFERENCE + offset, OIP_REST + offset
        program = "tests.support.chaos.faulty_serve" if fault else "tidemill.cli"
        command = [sys.executable, "-m", program, "serve", "--model-repository", str(work / "models")]
        command += ["--model-control", "explicit", "--load-model", "*", "--allow-client-shm"]
        command += ["--port-offset", str(offset)]
        (work / "tmp").mkdir()
        environment = {"TIDEMILL_INFERENCE_FRONTS": "2", "TMPDIR": str(work / "tmp")}
        environment["TIDEMILL_INFERENCE_RESPONSE_CACHE_BYTES"] = str(1 << 20)
        if fault:
            environment |= {VARIABLE: fault, "PYTHONPATH": str(Path(__file__).parents[3])}
        super().__init__(command, work / "serve.log")
        self._environment |= environment

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of REST."""
        return f"http://127.0.0.1:{self.rest}"

    def elsewhere(self) -> list[str]:
        """Files that its processes have open and that are neither theirs nor parts of Python."""
        mine: tuple[str, ...] = (str(self.work), sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
        mine += ("/usr/", "/lib", "/dev/", "/proc/", "/sys/", "/memfd:")
        found = set()
        for pid in self.pids():
            for target in _opened(pid):
                if target.startswith("/") and not target.startswith(mine):
                    found.add(target)
        return sorted(found)

    def shared(self) -> set[str]:
        """Files in shared memory that its processes have open, but for those that an experiment has made itself."""
        opened = {target for pid in self.pids() for target in _opened(pid) if target.startswith("/dev/shm/")}
        return {target for target in opened if not Path(target).name.startswith(SHARED)}

    async def ready(self) -> None:
        """Return when all of its models are, over gRPC and REST."""

        def all_ready() -> bool:
            with grpc.insecure_channel(self.address) as channel:
                stub = pg.GRPCInferenceServiceStub(channel)
                try:
                    return all(stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=5).ready for name in MODELS)
                except grpc.RpcError:
                    return False

        def rest_ready() -> bool:
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5):
                    return True
            except OSError:
                return False

        await until(all_ready, 120, f"all models are ready; the log is {self.log}")
        await until(rest_ready, 60, f"REST is ready; the log is {self.log}")


def _opened(pid: int) -> list[str]:
    """What a process has open; nothing when it has gone."""
    found = []
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return found


@contextmanager
def shared_object(size: int = 64) -> Iterator[str]:
    """The key of an object in shared memory."""
    path = Path("/dev/shm") / f"{SHARED}{os.getpid()}"
    path.write_bytes(bytes(size))
    try:
        yield path.name
    finally:
        path.unlink()


@contextmanager
def hostile(work: Path, fault: str = "") -> Iterator[Hostile]:
    """A running server."""
    server = Hostile(work, fault)
    with running(server):
        yield server
