"""Where each way to train wins, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from scripts.benchmarks.simulation.scenario import WAYS, Point, Scenario

COLOURS = {"all-reduce": "#6d597a", "bsp": "#2f6690", "ssp": "#81b29a", "asp": "#e07a5f"}


def draw(path: Path, points: Sequence[Point], scenario: Scenario) -> None:
    """Throughput over the number of workers, and two maps of who wins.

    Args:
        path: an SVG file.
        points: every number of workers with every part of straggling steps.
        scenario: that they are of.
    """
    parts = sorted({point.probability for point in points})
    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9))
    _rates(panels[0, 0], [point for point in points if point.probability == parts[0]])
    _rates(panels[0, 1], [point for point in points if point.probability == parts[-1]])
    _map(panels[1, 0], points, 0.0)
    panels[1, 0].set_title("most steps a second", fontsize=9)
    _map(panels[1, 1], points, scenario.stale_cost)
    panels[1, 1].set_title(f"if a round of staleness cost {scenario.stale_cost:.0%} of a step (assumed)", fontsize=9)
    figure.suptitle(
        f"Simulated: {scenario.bytes / 1e6:g} MB, {1000 * scenario.compute:g} ms a step, a shard for "
        f"{scenario.workers_a_shard} workers, {scenario.network * 8 / 1e9:g} Gb/s a machine",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _rates(panel: Axes, points: Sequence[Point]) -> None:
    workers = [point.workers for point in points]
    for way, text in WAYS.items():
        rates = [point.rates[way] / point.workers for point in points]
        panel.plot(workers, rates, marker="o", markersize=3, color=COLOURS[way], label=text)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("workers", fontsize=8)
    panel.set_ylabel("steps a second of one worker", fontsize=8)
    panel.set_title(f"{points[0].probability:.1%} of the steps straggle", fontsize=9)
    panel.legend(fontsize=8)


def _map(panel: Axes, points: Sequence[Point], stale_cost: float) -> None:
    counts = sorted({point.workers for point in points})
    parts = sorted({point.probability for point in points})
    for point in points:
        x, y = counts.index(point.workers), parts.index(point.probability)
        winner = point.winner(stale_cost)
        panel.add_patch(Rectangle((x, y), 1, 1, facecolor=COLOURS[winner], edgecolor="white"))
        panel.text(x + 0.5, y + 0.5, WAYS[winner].replace("all-reduce", "AR"), ha="center", va="center", fontsize=7)
    panel.set_xlim(0, len(counts))
    panel.set_ylim(0, len(parts))
    panel.set_xticks([at + 0.5 for at in range(len(counts))], [str(count) for count in counts], fontsize=8)
    panel.set_yticks([at + 0.5 for at in range(len(parts))], [f"{part:.1%}" for part in parts], fontsize=8)
    panel.set_xlabel("workers", fontsize=8)
    panel.set_ylabel("steps that straggle", fontsize=8)
