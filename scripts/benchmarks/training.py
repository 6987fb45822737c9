"""Step time of distributed training, beside DDP, PyTorch RPC and TensorFlow's parameter server in the same run."""

import argparse
import importlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from serving import CACHE, ROOT, environment
from trainers import gates, report
from trainers.crew import ALLOCATOR, Broken, Crew, Wrong
from trainers.gates import FLOOR, OURS
from trainers.job import Job
from trainers.models import MODELS
from trainers.modes import BY_ROWS, MODES

PEERS = {"ddp": ("ddp", ""), "torchrpc": ("torchrpc", ""), "tfps": ("tfps", "1"), "tfps10": ("tfps", "10")}
"""By the name in the report: the file in `trainers`, and its option."""
WARM = 10
TOLERANCE = 1e-5
"""Largest difference of a parameter between synchronous systems after the warm-up."""
COPY = 64 << 20
"""Bytes of the memory copy that transport is held against."""


def main() -> int:
    """Measure, print, and keep the figures as JSON; 1 when a promise is broken, 2 when no honest report is possible."""
    # Whoever ends the benchmark ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = arguments()
    modes = {f"{OURS}{mode}": ("ours", mode) for mode in filter(None, options.modes.split(","))}
    peers = {name: PEERS[name] for name in filter(None, options.peers.split(","))}
    systems = {FLOOR: ("alone", ""), **modes, **peers}
    cells = [(model, int(workers)) for model in options.models.split(",") for workers in options.workers.split(",")]
    rounds: list[dict[tuple[str, int], dict[str, Any]]] = [{} for _ in range(options.rounds)]
    copies = []
    try:
        for model, workers in cells:
            right = reference(model, workers, options)
            for number, found in enumerate(rounds):
                copies.append(copy_rate())
                for name, (module, option) in systems.items():
                    if option in BY_ROWS and MODELS[model].kind != "embedding":
                        continue  # there is no table
                    print(f"{model}, workers: {workers}, round {number + 1}: {name}", file=sys.stderr)
                    try:
                        run = measure(module, option, model, workers, options, right)
                    except Broken as broken:
                        if name not in peers:
                            raise
                        print(f"once more: {broken}", file=sys.stderr)
                        run = measure(module, option, model, workers, options, right)
                    found.setdefault((model, workers), {})[name] = run
    except (Broken, Wrong) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 2
    rate = statistics.median(copies)
    rows, judged = report.medians(rounds, rate), gates.judge(rounds)
    report.show(rows, judged)
    print(f"memory copy: {rate / 1e9:.1f} GB/s; {options.threads} thread(s) a process, processes not bound to cores")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    plain = [[{"model": m, "workers": w, "systems": runs} for (m, w), runs in found.items()] for found in rounds]
    facts = {
        **circumstances(options),
        "copy_bytes_s": rate,
        "medians": rows,
        "promises": judged,
        "rounds": plain,
    }
    options.json.write_text(json.dumps(facts, indent=1))
    print(f"figures: {options.json}")
    return int(any(row["kept"] is False for row in judged))


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="timed ones, a multiple of 10; 0 = as the model has it")
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--modes", default=",".join(MODES), help="of ours: " + ", ".join(MODES))
    parser.add_argument("--peers", default=",".join(PEERS), help="of " + ", ".join(PEERS))
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    asked = {"modes": MODES, "peers": PEERS, "models": MODELS}
    for name, known in asked.items():
        for word in filter(None, getattr(options, name).split(",")):
            if word not in known:
                parser.error(f"--{name}: {word} is none of {', '.join(known)}")
    if options.rounds < 1 or options.steps < 0 or options.steps % 10:
        parser.error("--rounds must be at least 1, --steps a multiple of 10")
    options.json = options.json or CACHE / f"training-{commit()[:12]}.json"
    return options


def measure(module: str, option: str, model: str, workers: int, options: Any, right: Any) -> dict[str, Any]:
    """One run of one system: its figures. Raises Broken or Wrong."""
    system = importlib.import_module(f"trainers.{module}")
    packages = getattr(system, "PACKAGES", ())
    python = environment(module, list(packages)) if packages else Path(sys.executable)
    steps = options.steps or MODELS[model].steps
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model,
            workers=workers,
            warm=WARM,
            steps=steps,
            threads=options.threads,
            option=option,
            ports=free_ports(workers + 2),
            folder=folder,
        )
        with Crew(python, system, job) as crew:
            crew.until("ready")
            crew.go()
            crew.until("warm")
            if system.known(job):
                compare(f"{module} {option}", Path(folder) / "values.npy", right)
            before = crew.cpu_seconds()
            crew.go()
            said = crew.until("done")
            cpu = crew.cpu_seconds() - before
            peaks = crew.peaks()
            crew.go()
    times = [1000 * span for line in said for span in line["times"]]
    return {
        "p50": statistics.median(times),
        "p99": report.quantile(times, 0.99),
        "payload": sum(line["payload"] for line in said) / steps,
        "cpu_s": cpu / steps,
        "peak_mib": peaks,
        "times": [round(span, 3) for span in times],
    }


def reference(model: str, workers: int, options: Any) -> Any:
    """The parameters that synchronous systems must have after the warm-up."""
    system = importlib.import_module("trainers.reference")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model,
            workers=workers,
            warm=WARM,
            steps=0,
            threads=options.threads,
            option="",
            ports=[],
            folder=folder,
        )
        with Crew(Path(sys.executable), system, job) as crew:
            crew.until("ready")
            crew.go()
            crew.until("warm")
            values = np.load(Path(folder) / "values.npy")
    return values


def compare(name: str, path: Path, right: Any) -> None:
    """Raise Wrong unless the parameters in a file are the right ones."""
    found = np.load(path)
    worst = float(np.abs(found - right).max()) if found.shape == right.shape else float("inf")
    if not worst <= TOLERANCE:
        raise Wrong(f"{name}: a parameter is {worst:.2g} off after {WARM} steps; at most {TOLERANCE:g} is right")


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody has."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def copy_rate() -> float:
    """Bytes a second of a copy in memory, by one thread."""
    source, target = np.ones(COPY // 4, np.float32), np.ones(COPY // 4, np.float32)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return COPY / statistics.median(times)


def commit() -> str:
    """What is checked out."""
    return output("git", "rev-parse", "HEAD") or "unknown"


def output(*command: str) -> str:
    """What a command prints; nothing when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def circumstances(options: Any) -> dict[str, Any]:
    """On what, and of what, the figures are."""
    from importlib.metadata import version

    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "commit": commit(),
        "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": cpus[:1], "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "grpcio", "protobuf", "numpy")},
        "packages": {name: getattr(importlib.import_module(f"trainers.{name}"), "PACKAGES", ()) for name in ("tfps",)},
        "allocator": ALLOCATOR,
        "tolerance": TOLERANCE,
        "warm_up_steps": WARM,
        "options": {name: str(value) for name, value in vars(options).items() if name != "json"},
    }


if __name__ == "__main__":
    sys.exit(main())
