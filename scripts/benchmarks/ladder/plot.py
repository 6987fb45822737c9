"""The ladder as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from scripts.benchmarks.ladder.payloads import PAYLOADS
from scripts.benchmarks.ladder.rungs import RUNGS

CARRIED, ADDED, LESS = "#9db4c8", "#c8553d", "#2f6690"


def draw(path: Path, figures: Mapping[str, float], payloads: Sequence[str], rungs: Sequence[str]) -> None:
    """One panel a payload: each rung's milliseconds, and how much of them is beyond the rung that it stands on.

    Args:
        path: an SVG file.
        figures: seconds of an exchange by `payload rung`.
        payloads: names of those that were measured.
        rungs: likewise, from the bottom up.
    """
    figure, panels = pyplot.subplots(len(payloads), 1, figsize=(9, 0.6 + 2.6 * len(payloads)), squeeze=False)
    for panel, payload in zip(panels[:, 0], payloads, strict=True):
        for row, rung in enumerate(rungs):
            taken = 1000 * figures[f"{payload} {rung}"]
            under = RUNGS[rung].below
            base = 1000 * figures.get(f"{payload} {under}", 0.0) if under in rungs else 0.0
            panel.barh(row, min(base, taken), color=CARRIED)
            panel.barh(row, max(taken - base, 0.0), left=min(base, taken), color=ADDED if base else LESS)
            rate = 2 * PAYLOADS[payload].bytes / taken / 1e6
            panel.text(taken, row, f" {taken:.2f} ms, {rate:.2f} GB/s", va="center", fontsize=8)
        panel.set_yticks(range(len(rungs)), [RUNGS[rung].text for rung in rungs], fontsize=8)
        panel.set_xlim(0, 1350 * max(figures[f"{payload} {rung}"] for rung in rungs))
        panel.set_title(f"{PAYLOADS[payload].text}: gradients up, parameters down", fontsize=9)
        panel.set_xlabel("ms; red: beyond the rung that it stands on", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
