"""Accuracy of `cnn` on the held-out digits, trained in every mode from several seeds."""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.measuring import facts
from tests.support.up import Up, platform

WANTED = 0.985
"""Median over the seeds, in each mode."""
WORKERS, BATCH, EPOCHS, RATE = 2, 32, 40, 0.002
MODES = {
    "bsp": ("--mode", "bsp"),
    "ssp 3": ("--mode", "ssp", "--staleness", "3"),
    "asp": ("--mode", "asp"),
    "all-reduce": ("--strategy", "all_reduce"),
}
SAMPLES = 1439
"""Digits for training, when a tenth is held out for validation and a tenth for testing."""


def main() -> int:
    """Train, print, and keep the figures as JSON; 1 when a mode is not good enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    facts.common(parser)
    options = facts.parsed(parser, "quality")
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, platform(Path(folder) / "data", shards=1) as up:
        for seed in range(options.rounds):
            for mode in MODES:
                found[mode].append(train(up, mode, seed)["result"]["test"]["accuracy"])
    show(found)
    medians = {mode: statistics.median(accuracies) for mode, accuracies in found.items()}
    facts.keep(options, {"wanted": WANTED, "medians": medians, "accuracies": found})
    return int(min(medians.values()) < WANTED)


def train(up: Up, mode: str, seed: int) -> Any:
    """One job, the same in every mode but for what follows from that.

    `ssp` and `asp` make a step of each worker's part of a batch: more steps, which are smaller (Goyal et al. 2017, the
    linear scaling rule).
    """
    parts = WORKERS if mode in ("ssp 3", "asp") else 1
    steps = -(-SAMPLES // BATCH) * EPOCHS * parts
    done = up.cli(
        *("train", "cnn", "digits", "--json", "--workers", str(WORKERS), "--seed", str(seed), *MODES[mode]),
        *("--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--optimizer", "adam"),
        *("-o", f"learning_rate={RATE / parts}"),
        *("--schedule", "cosine", "--schedule-parameter", f"steps={steps}"),
        timeout=600,
    )
    if done.returncode:
        raise SystemExit(f"{mode}: {done.stderr}")
    return json.loads(done.stdout)


def show(found: dict[str, list[float]]) -> None:
    """Print the figures."""
    table = Table("mode", "median", "least", "each seed")
    for mode, each in found.items():
        seeds = "  ".join(f"{accuracy:.2%}" for accuracy in each)
        table.add_row(mode, f"{statistics.median(each):.2%}", f"{min(each):.2%}", seeds)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
