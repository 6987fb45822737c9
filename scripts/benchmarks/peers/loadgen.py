"""Load on a gRPC server from h2load, a client in C: rates, and times of single requests. Not a benchmark by itself."""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run showed.

    Args:
        rate: answers a second.
        failed: requests without HTTP status 200.
        size: bytes of an answer's body, its frame among them.
        p50, p99: milliseconds.
    """

    rate: float
    failed: int
    size: float
    p50: float
    p99: float


def require() -> None:
    """End with a message when h2load is missing and cannot be installed."""
    if shutil.which("h2load"):
        return
    if (
        shutil.which("apt-get")
        and not subprocess.run(
            ["apt-get", "install", "-y", "-qq", "nghttp2-client"], stdout=subprocess.DEVNULL, check=False
        ).returncode
    ):
        return
    sys.exit("h2load is needed: install the system's package nghttp2-client")


def drive(
    address: str, request: Path, seconds: float, *, connections: int = 4, streams: int = 8, rate: float = 0
) -> Load:
    """Send `request` (a gRPC frame) again and again.

    Args:
        seconds: for how long.
        connections, streams: connections, and requests in flight on each.
        rate: requests a second of all connections together; 0 = as fast as answers come.
    """
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", "-D", str(seconds), f"--log-file={log.name}"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(request)]
        if rate:
            command += [f"--rps={max(rate / connections, 0.1):.3f}"]
        done = subprocess.run([*command, f"http://{address}{METHOD}"], capture_output=True, text=True, check=True)
        times = sorted(int(line.split("\t")[2]) / 1000 for line in Path(log.name).read_text().splitlines())
    found = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", done.stdout)
    counts = re.search(r"(\d+) done, (\d+) succeeded", done.stdout)
    data = re.search(r"\((\d+)\) data", done.stdout)
    if not (found and counts and data and times):
        sys.exit(f"h2load said nothing useful:\n{done.stdout}{done.stderr}")
    finished, good = map(int, counts.groups())
    return Load(
        float(found[1]),
        finished - good,
        int(data[1]) / max(finished, 1),
        statistics.median(times),
        times[min(len(times) - 1, int(len(times) * 0.99))],
    )
