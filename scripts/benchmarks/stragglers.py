"""Throughput and loss of BSP (also without the slowest), SSP and ASP when steps are slow at random, on a real shard."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.measuring import facts, gates
from scripts.benchmarks.measuring.gates import Gate
from scripts.benchmarks.measuring.pinning import pin
from scripts.benchmarks.measuring.processes import shards
from scripts.benchmarks.straggling.crew import Way, run
from scripts.benchmarks.straggling.delays import Delays

WAYS = {
    "bsp": Way(text="BSP", mode="bsp"),
    "drop1": Way(text="BSP without the slowest", mode="bsp", most_dropped=1),
    "ssp3": Way(text="SSP, at most 3 steps apart", mode="ssp", staleness=3),
    "asp": Way(text="ASP", mode="asp"),
}
GATES = [
    Gate("SSP s=3: steps a second / BSP's", lambda found: found["ssp3 rate"] / found["bsp rate"], 1.3, True),
    Gate("ASP: steps a second / BSP's", lambda found: found["asp rate"] / found["bsp rate"], 1.6, True),
]


def main() -> int:
    """Measure, print, and keep the figures as JSON; 1 when a promise is broken."""
    options = arguments()
    pin(options.threads)
    rounds: list[dict[str, float]] = [{} for _ in range(options.rounds)]
    with shards(1, options.threads) as (shard,):
        for number, found in enumerate(rounds):
            # Every way meets the same delays and batches; every round others.
            delays = Delays(options.step_ms / 1000, options.extra_ms / 1000, options.probability, number)
            for name, way in WAYS.items():
                print(f"round {number + 1}: {way.text}", file=sys.stderr)
                result = run(
                    shard,
                    way,
                    delays,
                    workers=options.workers,
                    steps=options.steps * options.workers,
                    rate=options.rate,
                    seed=number,
                )
                found[f"{name} rate"] = options.steps * options.workers / result.seconds
                found[f"{name} loss"] = result.loss
                found[f"{name} apart"] = result.widest
    figures = gates.medians(rounds)
    show(figures, rounds, options)
    judged = gates.judge(GATES, rounds)
    gates.show(judged)
    facts.keep(options, {"medians": figures, "promises": judged, "rounds": rounds})
    return int(gates.broken(judged))


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="of each worker on average")
    parser.add_argument("--step-ms", type=float, default=20.0, help="of every step")
    parser.add_argument("--extra-ms", type=float, default=100.0, help="of a straggling step, beyond")
    parser.add_argument("--probability", type=float, default=0.1, help="of a step to straggle")
    parser.add_argument("--rate", type=float, default=0.5, help="learning rate for the mean gradient of all workers")
    facts.common(parser)
    options = facts.parsed(parser, "stragglers")
    if options.workers < 1 or options.steps < 1:
        parser.error("--workers and --steps must be at least 1")
    return options


def show(figures: dict[str, float], rounds: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Print one row a way."""
    title = (
        f"{options.workers} workers, steps of {options.step_ms:g} ms, "
        f"{options.extra_ms:g} ms more with probability {options.probability:g}"
    )
    columns = ["steps/s", "of rounds", "times BSP", "begun apart, most", "loss at equal samples", "of rounds"]
    table = Table("way", *columns, title=title)
    for name, way in WAYS.items():
        low, high = gates.spread(rounds, f"{name} rate")
        least, most = gates.spread(rounds, f"{name} loss")
        table.add_row(
            way.text,
            f"{figures[f'{name} rate']:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{figures[f'{name} rate'] / figures['bsp rate']:.2f}",
            f"{max(found[f'{name} apart'] for found in rounds):g}",
            f"{figures[f'{name} loss']:.4f}",
            f"{least:.4f}-{most:.4f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
