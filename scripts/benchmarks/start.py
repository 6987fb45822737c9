"""How long `tidemill up` takes to be ready, what memory it holds idle, and how long the clients take to import."""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.up import platform

READY_SECONDS, IDLE_MEGABYTES, IMPORT_SECONDS = 8.0, 900.0, 0.5
"""What the platform promises on two cores."""
SETTLE_SECONDS = 3.0
CLIENTS = Path(__file__).parents[2] / "libs/tidemill/clients"


def memory(pid: int) -> tuple[float, float]:
    """Resident and proportional memory of a process in 10^6 bytes; the latter counts shared pages in part."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024 / 1e6
    return fields["Rss:"], fields["Pss:"]


def service_of(command: str) -> str:
    """The service in a command line."""
    module = next(
        (part for part in command.split() if part.startswith("tidemill.") and part != "tidemill.cli.child"), ""
    )
    return module.removeprefix("tidemill.") or "?"


def measure(folder: Path) -> dict[str, object]:
    """One start."""
    began = time.monotonic()
    with platform(folder / "data") as up:
        ready = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        rows = []
        for pid, command in sorted(up.processes().items()):
            with contextlib.suppress(FileNotFoundError):
                resident, proportional = memory(pid)
                rows.append({"service": service_of(command), "rss_mb": resident, "pss_mb": proportional})
    return {"ready_s": ready, "processes": rows}


def import_seconds() -> float:
    """Wall time of a Python that imports every client and ends, less that of one that imports nothing; warm."""
    clients = [f"tidemill.clients.{path.stem}" for path in sorted(CLIENTS.glob("[a-z]*.py"))]
    times = {}
    for code in ("", f"import {', '.join(clients)}"):
        runs = []
        for _ in range(6):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            runs.append(time.perf_counter() - began)
        times[code] = statistics.median(runs[1:])
    bare, full = times.values()
    return full - bare


def main() -> int:
    """Measure, print, and write JSON when asked; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(Path(folder)))
    ready = statistics.median(float(r["ready_s"]) for r in rounds)  # type: ignore[arg-type]
    last = rounds[-1]["processes"]
    assert isinstance(last, list)
    table = Table("process", "resident MB", "proportional MB")
    for row in last:
        table.add_row(row["service"], f"{row['rss_mb']:.0f}", f"{row['pss_mb']:.0f}")
    resident, proportional = (sum(row[key] for row in last) for key in ("rss_mb", "pss_mb"))
    table.add_row("all", f"{resident:.0f}", f"{proportional:.0f}")
    console = Console()
    console.print(table)
    console.print(f"ready after {ready:.1f} s (median of {len(rounds)}; promised: {READY_SECONDS:.0f} s)")
    console.print(
        f"idle: {resident:.0f} MB resident, {proportional:.0f} MB proportional (promised: {IDLE_MEGABYTES:.0f} MB)"
    )
    imported = import_seconds()
    console.print(f"all clients imported in {imported:.2f} s (median of 5, warm; promised: {IMPORT_SECONDS} s)")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "import_s": imported}, indent=1))
    return int(ready > READY_SECONDS or resident > IDLE_MEGABYTES or imported > IMPORT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
