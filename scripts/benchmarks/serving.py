"""Requests a second and tail times of gRPC inference, beside MLServer, KServe and Triton in the same run."""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import loadgen
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bench"
OURS, FLOOR = "tidemill", "bare"
SHAPES = {"mlp": (64,), "cnn": (1, 28, 28), "large": (1 << 18,)}
"""Input of each model, without the batch; `large` gives back 1 MiB of what it gets."""
PROMISED = {"mlp": 1.8, "cnn": 1.8}
"""Requests a second over those of the best peer."""
PROMISED_LARGE = 0.8
"""Requests a second of `large` over those of the bare handler."""


def main() -> int:
    """Measure, print, and write JSON when asked; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--peers", default="bare,mlserver,kserve,triton")
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--fronts", type=int, default=0, help="processes of ours; 0 = as configured by default")
    parser.add_argument("--json", type=Path, default=CACHE / "serving.json", help="write the figures there")
    options = parser.parse_args()
    loadgen.require()
    models = options.models.split(",")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        tools = environment("tools", ["grpcio-tools", "onnx", "onnxruntime", "numpy"])
        run(tools, Path(__file__).parent / "peers" / "models.py", work, *models)
        addresses = {OURS: stack.enter_context(ours(work, options.fronts))}
        for name in filter(None, options.peers.split(",")):
            addresses[name] = stack.enter_context(peer(name, work))
        sizes = {(name, model): checked(tools, work, addresses[name], model) for name in addresses for model in models}
        figures = rounds(work, addresses, models, sizes, options)
    report = summary(figures, models)
    show(report)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"options": vars(options) | {"json": ""}, **report}, indent=1))
    return int(not report["kept"])


def rounds(
    work: Path,
    addresses: dict[str, str],
    models: list[str],
    sizes: dict[tuple[str, str], int],
    options: argparse.Namespace,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """For each model and server: the rates of all rounds, and the tail times at half of our rate."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {
        model: {name: {"rate": [], "p99": [], "half_p99": []} for name in addresses} for model in models
    }
    for _ in range(options.rounds):
        for model in models:
            request = work / f"{model}.req"
            for name, address in addresses.items():
                loadgen.drive(address, request, 1)
                load = loadgen.drive(address, request, options.seconds)
                if load.failed or abs(load.size / (sizes[name, model] + 5) - 1) > 0.1:
                    sys.exit(f"{name} {model}: {load.failed} failed, answers of {load.size:.0f} bytes")
                figures[model][name]["rate"].append(load.rate)
                figures[model][name]["p99"].append(load.p99)
            half = statistics.median(figures[model][OURS]["rate"]) / 2
            for name, address in addresses.items():
                load = loadgen.drive(address, request, options.seconds, rate=half)
                figures[model][name]["half_p99"].append(load.p99)
    return figures


def summary(figures: dict[str, dict[str, dict[str, list[float]]]], models: list[str]) -> dict[str, object]:
    """Medians, ratios, and whether what is promised was kept."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    ratios: dict[str, dict[str, float]] = {}
    kept = True
    for model in models:
        table[model] = {
            name: {key: round(statistics.median(values), 2) for key, values in rows.items()}
            for name, rows in figures[model].items()
        }
        mine = table[model][OURS]
        peers = {name: row for name, row in table[model].items() if name not in (OURS, FLOOR)}
        found = ratios[model] = {}
        if peers:
            found["rate/best peer"] = round(mine["rate"] / max(row["rate"] for row in peers.values()), 2)
            found["p99 at half load/best peer"] = round(
                mine["half_p99"] / min(row["half_p99"] for row in peers.values()), 2
            )
            kept &= found["rate/best peer"] >= PROMISED.get(model, 0)
        if FLOOR in table[model]:
            found["rate/bare"] = round(mine["rate"] / table[model][FLOOR]["rate"], 2)
            kept &= model != "large" or found["rate/bare"] >= PROMISED_LARGE
    return {"medians": table, "ratios": ratios, "rounds": figures, "kept": kept}


def show(report: dict[str, object]) -> None:
    """Print the medians and ratios."""
    console = Console()
    medians, ratios = report["medians"], report["ratios"]
    assert isinstance(medians, dict)
    assert isinstance(ratios, dict)
    for model, rows in medians.items():
        table = Table("server", "requests/s", "p99 ms", "p99 ms at half of our rate", title=model)
        for name, row in rows.items():
            table.add_row(name, f"{row['rate']:.0f}", f"{row['p99']:.1f}", f"{row['half_p99']:.1f}")
        console.print(table)
        console.print(", ".join(f"{name}: {value}" for name, value in ratios[model].items()))


def environment(name: str, packages: list[str], python: str = sys.executable) -> Path:
    """The python of a cached virtual environment."""
    folder = CACHE / name
    if not (folder / ".ready").exists():
        print(f"preparing {name}", file=sys.stderr)
        run(Path(python), "-m", "venv", "--clear", folder)
        run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages)
        (folder / ".ready").touch()
    return folder / "bin" / "python"


def run(*command: object) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def checked(python: Path, work: Path, address: str, model: str) -> int:
    """Size of a right answer in bytes, once the server gives one."""
    return int(run(python, Path(__file__).parent / "peers" / "check.py", work, address, model))


@contextmanager
def ours(work: Path, fronts: int) -> Iterator[str]:
    """Our server on the models, configured by default, with 1 % of the requests traced into files."""
    repository = work / "repository"
    for path in work.glob("*.onnx"):
        (repository / path.stem / "1").mkdir(parents=True)
        (repository / path.stem / "1" / "model.onnx").write_bytes(path.read_bytes())
    port = free_port()
    settings = {
        "TIDEMILL_INFERENCE_MODEL_REPOSITORY": str(repository),
        "TIDEMILL_INFERENCE_DATA": str(work / "data"),
        "TIDEMILL_INFERENCE_PORT": str(port),
        "TIDEMILL_INFERENCE_SECOND_PORT": "",
        "TIDEMILL_INFERENCE_OPS_PORT": "0",
        "TIDEMILL_TRACES": f"file:{work / 'traces'}",
        "TIDEMILL_TRACE_SAMPLE": "0.01",
    }
    if fronts:
        settings["TIDEMILL_INFERENCE_FRONTS"] = str(fronts)
    with process([sys.executable, "-m", "tidemill.inference"], settings, work / "ours.log"):
        yield f"127.0.0.1:{port}"


@contextmanager
def peer(name: str, work: Path) -> Iterator[str]:
    """A server of others on the models."""
    folder = Path(__file__).parent
    found = __import__(f"peers.{name}", fromlist=[name])
    python = environment(name, found.PACKAGES, getattr(found, "PYTHON", sys.executable))
    port = free_port()
    with process(
        [str(python), "-m", "peers", name, str(work), str(port)], {"PYTHONPATH": str(folder)}, work / f"{name}.log"
    ):
        yield f"127.0.0.1:{port}"


@contextmanager
def process(command: list[str], settings: dict[str, str], log: Path) -> Iterator[None]:
    """A process that is ended with all that it started."""
    with log.open("w") as output:
        running = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        for signum, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            if running.poll() is None:
                os.killpg(running.pid, signum)
                end = time.monotonic() + patience
                while running.poll() is None and time.monotonic() < end:
                    time.sleep(0.05)


def free_port() -> int:
    """A port that nobody has; the next two are usually free as well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
