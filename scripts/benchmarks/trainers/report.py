"""Medians over rounds, and the tables that are printed."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from trainers.gates import FLOOR, Round, overhead
from trainers.models import MODELS


def quantile(values: Sequence[float], part: float) -> float:
    """The least value that so large a part of all does not exceed."""
    return sorted(values)[max(math.ceil(part * len(values)) - 1, 0)]


def medians(rounds: list[Round], copy_rate: float) -> list[dict[str, Any]]:
    """One row for each model, number of workers and system.

    Args:
        rounds: what was measured.
        copy_rate: bytes a second of a memory copy.
    """
    rows = []
    for model, workers in rounds[0]:
        for system in rounds[0][model, workers]:
            runs = [found[model, workers][system] for found in rounds]
            beyond = None
            if FLOOR in rounds[0][model, workers] and system != FLOOR:
                beyond = statistics.median(overhead(found, system, model, workers) for found in rounds)
            payload = statistics.median(run["payload"] for run in runs)
            moved = payload / (beyond / 1000) if beyond and beyond > 0 and payload else None
            rows.append(
                {
                    "model": model,
                    "workers": workers,
                    "system": system,
                    "p50_ms": statistics.median(run["p50"] for run in runs),
                    "p50_spread_ms": [min(run["p50"] for run in runs), max(run["p50"] for run in runs)],
                    "p99_ms": quantile([time for run in runs for time in run["times"]], 0.99),
                    "overhead_ms": beyond,
                    "payload_mb": payload / 1e6,
                    "moved_gb_s": moved and moved / 1e9,
                    "moved_of_copy": moved and moved / copy_rate,
                    "cpu_s": statistics.median(run["cpu_s"] for run in runs),
                    "peak_mib": {
                        name: max(run["peak_mib"][name] for run in runs) for name in sorted(runs[0]["peak_mib"])
                    },
                }
            )
    return rows


def show(rows: list[dict[str, Any]], judged: list[dict[str, Any]]) -> None:
    """Print all rows, and the promises."""
    console = Console(width=150)
    for model, workers in dict.fromkeys((row["model"], row["workers"]) for row in rows):
        columns = [
            "step p50 ms",
            "of rounds",
            "p99 ms",
            "overhead ms",
            "MB a step",
            "GB/s",
            "of a copy",
            "CPU ms a step",
        ]
        table = Table("system", *columns, "peak MiB", title=f"{model}: {MODELS[model].text}; workers: {workers}")
        for row in rows:
            if (row["model"], row["workers"]) != (model, workers):
                continue
            low, high = row["p50_spread_ms"]
            table.add_row(
                row["system"],
                f"{row['p50_ms']:.1f}",
                f"{low:.1f}-{high:.1f}",
                f"{row['p99_ms']:.1f}",
                number(row["overhead_ms"], "{:.1f}"),
                f"{row['payload_mb']:.1f}",
                number(row["moved_gb_s"], "{:.2f}"),
                number(row["moved_of_copy"], "{:.0%}"),
                f"{1000 * row['cpu_s']:.1f}",
                " ".join(f"{name} {peak:.0f}" for name, peak in row["peak_mib"].items()),
            )
        console.print(table)
    table = Table("promise", "limit", "measured", "", title="Promises (median of the rounds' ratios)")
    words = {True: "kept", False: "NOT KEPT", None: "not measured"}
    for row in judged:
        limit = f"{'>=' if row['least'] else '<='} {row['limit']:g}"
        table.add_row(row["promise"], limit, number(row["ratio"], "{:.2f}"), words[row["kept"]])
    console.print(table)


def number(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else form.format(value)
