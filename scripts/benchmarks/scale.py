"""A simulation of up to 1,000 workers, calibrated on real runs and held against others: which way to train wins."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.measuring import facts, gates
from scripts.benchmarks.measuring.gates import Gate, Round
from scripts.benchmarks.measuring.pinning import pin
from scripts.benchmarks.measuring.processes import shards
from scripts.benchmarks.simulation import plot
from scripts.benchmarks.simulation.calibration import Known, Model, fit, predict
from scripts.benchmarks.simulation.measured import Setup, measure, products_for, touch
from scripts.benchmarks.simulation.scenario import WAYS, Point, Scenario, explore

Measured: TypeAlias = Mapping[str, Mapping[str, float]]
"""What one round found: figures by the name of the run, and what adding costs as `touch`."""

MIB = 1 << 20
CALIBRATION = {
    "small": Setup(workers=1, bytes=MIB),
    "large": Setup(workers=1, bytes=32 * MIB),
    "two shards": Setup(workers=1, shards=2, bytes=32 * MIB),
    "two workers": Setup(workers=2, bytes=32 * MIB),
    "small all-reduce": Setup(workers=2, bytes=MIB // 16, mode="all-reduce"),
    "large all-reduce": Setup(workers=2, bytes=32 * MIB, mode="all-reduce"),
}
HELD_OUT = {
    "2 workers, 2 shards, BSP": Setup(workers=2, shards=2, bytes=32 * MIB),
    "2 workers, half of the bytes, BSP": Setup(workers=2, bytes=16 * MIB),
    "2 workers, ASP": Setup(workers=2, bytes=32 * MIB, mode="asp"),
    "2 workers, half of the bytes, all-reduce": Setup(workers=2, bytes=16 * MIB, mode="all-reduce"),
}
PROMISED = ("2 workers, 2 shards, BSP", "2 workers, half of the bytes, BSP")
"""Those that the simulation must predict; the others are told."""
NEAR = 0.2
"""Most by which a prediction may be off, as a part of what was measured."""
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STRAGGLING = (0.0, 0.001, 0.01, 0.03, 0.1)


def near(name: str) -> list[Gate]:
    """The promise for one run that the simulation was not calibrated on: neither much too high nor much too low."""

    def ratio(found: Round) -> float:
        return found[f"{name} predicted"] / found[f"{name} measured"]

    text = f"{name}: step predicted / measured"
    return [Gate(text, ratio, 1 - NEAR, least=True), Gate(text, ratio, 1 + NEAR)]


GATES = [gate for name in PROMISED for gate in near(name)]


def main() -> int:
    """Measure, calibrate, predict, draw, and keep the figures as JSON; 1 when a promise is broken."""
    options = arguments()
    pin(options.threads)
    measured = recorded(options.figures) if options.figures else measure_all(options)
    rounds = [compared(found, options.cores) for found in measured]
    figures = gates.medians(rounds)
    show(figures)
    judged = gates.judge(GATES, rounds)
    gates.show(judged)
    model = model_of(middle(measured), options.cores)
    scenario = Scenario(
        network=options.gigabits * 1e9 / 8, bytes=options.megabytes * 1e6, workers_a_shard=options.workers_a_shard
    )
    workers = [count for count in WORKERS if count <= options.workers]
    print(f"simulating up to {workers[-1]} workers", file=sys.stderr)
    points = explore(model, scenario, workers, STRAGGLING)
    show_winners(points, scenario)
    picture = options.json.with_suffix(".svg")
    plot.draw(picture, points, scenario)
    found = {
        "medians": figures,
        "promises": judged,
        "model": asdict(model),
        "scenario": asdict(scenario),
        "points": [asdict(point) for point in points],
        "rounds": rounds,
        "measured": measured,
    }
    facts.keep(options, found)
    print(f"plot: {picture}")
    return int(gates.broken(judged))


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="timed ones of each real run")
    parser.add_argument("--compute-ms", type=float, default=50.0, help="that a step of a real run computes")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of this host, for the calibration")
    parser.add_argument("--figures", type=Path, help="take the real runs from this JSON of an earlier time")
    parser.add_argument("--workers", type=int, default=WORKERS[-1], help="most of them to simulate")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of the simulated model")
    parser.add_argument("--gigabits", type=float, default=25.0, help="a second of each simulated machine's network")
    parser.add_argument(
        "--workers-a-shard", type=int, default=2, help="in the simulation, while there are blocks for all"
    )
    facts.common(parser)
    options = facts.parsed(parser, "scale")
    if (
        min(options.steps, options.cores, options.workers, options.megabytes, options.gigabits) <= 0
        or options.workers_a_shard < 1
    ):
        parser.error("every number must be positive")
    return options


def measure_all(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """For each round the figures of all real runs, calibrating and held-out ones in turn."""
    rounds = []
    with shards(2, options.threads) as started:
        products = products_for(options.compute_ms / 1000)
        for number in range(options.rounds):
            found = {"touch": {"seconds": touch()}}
            for name, setup in {**CALIBRATION, **HELD_OUT}.items():
                print(f"round {number + 1}: {name}", file=sys.stderr)
                found[name] = measure(setup, started, products, options.steps)
            rounds.append(found)
    return rounds


def recorded(path: Path) -> list[dict[str, dict[str, float]]]:
    """The real runs of an earlier time."""
    rounds: list[dict[str, dict[str, float]]] = json.loads(path.read_text())["measured"]
    return rounds


def middle(measured: Sequence[Measured]) -> Measured:
    """The median of every figure over the rounds."""
    return {name: gates.medians([found[name] for found in measured]) for name in measured[0]}


def model_of(found: Measured, cores: int) -> Model:
    """The model that the calibrating runs come to."""

    def known(name: str) -> Known:
        setup = CALIBRATION[name]
        return Known(setup.workers, setup.shards, setup.bytes, found[name])

    return fit(
        known("small"),
        known("large"),
        [known("two shards"), known("two workers")],
        (known("small all-reduce"), known("large all-reduce")),
        touch=found["touch"]["seconds"],
        cores=cores,
    )


def compared(found: Measured, cores: int) -> dict[str, float]:
    """For each run the seconds of a step as measured, and as predicted by the calibrating ones of the round."""
    model = model_of(found, cores)
    rows = {}
    for name, setup in {**CALIBRATION, **HELD_OUT}.items():
        outcome = predict(model, setup.bytes, workers=setup.workers, shards=setup.shards, mode=setup.mode)
        rows[f"{name} measured"] = found[name]["step"]
        rows[f"{name} predicted"] = setup.workers / outcome.rate
    return rows


def show(figures: Mapping[str, float]) -> None:
    """Print what was measured beside what was predicted."""
    table = Table("run", "measured ms", "predicted ms", "predicted / measured", "", title="Steps of real runs")
    for name in (*CALIBRATION, *HELD_OUT):
        real, predicted = figures[f"{name} measured"], figures[f"{name} predicted"]
        role = "calibrates" if name in CALIBRATION else "held out"
        table.add_row(name, f"{1000 * real:.1f}", f"{1000 * predicted:.1f}", f"{predicted / real:.2f}", role)
    Console(width=120).print(table)


def show_winners(points: Sequence[Point], scenario: Scenario) -> None:
    """Print who wins where."""
    counts = list(dict.fromkeys(point.workers for point in points))
    for cost, text in ((0.0, "most steps a second"), (scenario.stale_cost, "less what staleness is assumed to cost")):
        table = Table("straggling", *map(str, counts), title=f"Who wins with so many workers: {text}")
        rows: dict[float, list[Any]] = {}
        for point in points:
            rows.setdefault(point.probability, []).append(WAYS[point.winner(cost)].replace("all-reduce", "AR"))
        for part, row in rows.items():
            table.add_row(f"{part:.1%}", *row)
        Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
