"""Promises: ratios within one round that must not pass a limit."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Round = Mapping[str, float]
"""What one round found, in seconds or whatever the benchmark measures, by name."""
WORDS = {True: "kept", False: "NOT KEPT", None: "not measured"}


@dataclass(frozen=True, slots=True)
class Gate:
    """One promise."""

    text: str
    ratio: Callable[[Round], float]
    """Raises KeyError when something that it needs was not measured."""
    limit: float
    least: bool = False
    """Whether the ratio must be at least, not at most the limit."""

    def keeps(self, ratio: float) -> bool:
        """Whether a ratio keeps the promise."""
        return ratio >= self.limit if self.least else ratio <= self.limit


def judge(gates: Sequence[Gate], rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """For each gate the median of the rounds' ratios, and whether it was kept; None where it was not measured."""
    rows = []
    for gate in gates:
        try:
            ratios = [gate.ratio(found) for found in rounds]
        except KeyError:
            ratios = []
        middle = statistics.median(ratios) if ratios else None
        rows.append(
            {
                "promise": gate.text,
                "limit": gate.limit,
                "least": gate.least,
                "ratio": middle,
                "ratios": ratios,
                "kept": None if middle is None else gate.keeps(middle),
            }
        )
    return rows


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """The median of each figure that every round has."""
    return {
        name: statistics.median(found[name] for found in rounds)
        for name in rounds[0]
        if all(name in found for found in rounds)
    }


def spread(rounds: Sequence[Round], name: str) -> tuple[float, float]:
    """The least and the largest of a figure."""
    values = [found[name] for found in rounds]
    return min(values), max(values)


def show(judged: Sequence[Mapping[str, Any]]) -> None:
    """Print what became of the promises."""
    table = Table("promise", "limit", "measured", "", title="Promises (median of the rounds' ratios)")
    for row in judged:
        limit = f"{'>=' if row['least'] else '<='} {row['limit']:g}"
        measured = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["promise"], limit, measured, WORDS[row["kept"]])
    Console(width=130).print(table)


def broken(judged: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a promise that was measured was not kept."""
    return any(row["kept"] is False for row in judged)
