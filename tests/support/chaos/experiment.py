"""An experiment: promises that hold or do not, and a fault to plant that must break one of them."""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold.

    Args:
        name: what is looked at.
        found: what was seen.
        wanted: what it must be, for people.
        kept: whether it is.
    """

    name: str
    found: float
    wanted: str
    kept: bool


@dataclass(slots=True)
class Report:
    """What an experiment found."""

    promises: list[Promise] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def none(self, name: str, found: int) -> None:
        """There must be none of these."""
        self.promises.append(Promise(name, found, "0", found == 0))

    def exactly(self, name: str, found: int, wanted: int) -> None:
        """It must be this."""
        self.promises.append(Promise(name, found, str(wanted), found == wanted))

    def at_most(self, name: str, found: float, bound: float) -> None:
        """It must not be more; nothing measured is more than anything."""
        self.promises.append(Promise(name, round(found, 3), f"<= {bound:g}", found <= bound))

    def at_least(self, name: str, found: float, bound: float) -> None:
        """It must not be less; nothing measured is less than anything."""
        self.promises.append(Promise(name, round(found, 3), f">= {bound:g}", found >= bound))

    @property
    def broken(self) -> list[str]:
        """Promises that did not hold."""
        return [promise.name for promise in self.promises if not promise.kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment.

    Args:
        title: what it shows, in one line.
        run: does it, with the options and an empty directory. What it looks at is judged by `Report`.
        plants: name of a fault -> a promise that it must break. The first is what `--plant` alone plants.
        arguments: flags beside those that all have, with their defaults.
    """

    title: str
    run: Callable[[argparse.Namespace, Path], Coroutine[Any, Any, Report]]
    plants: Mapping[str, str]
    arguments: Mapping[str, float] = field(default_factory=dict)

    def main(self) -> int:
        """Run as a command says: 1 when a promise is broken; with a planted fault, when it was not caught."""
        options = self._parser().parse_args()
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tidemill-chaos-") as work:
            report = asyncio.run(self.run(options, Path(work)))
        caught = self.plants.get(options.plant) in report.broken
        succeeded = caught if options.plant else not report.broken
        document = {
            "experiment": Path(sys.argv[0]).stem.replace("_", "-"),
            "planted": options.plant,
            "succeeded": succeeded,
            "seconds": round(time.monotonic() - began, 1),
            "commit": _commit(),
            "cores": os.cpu_count(),
            "options": {name: getattr(options, name) for name in self.arguments},
            "promises": [asdict(promise) for promise in report.promises],
            "figures": report.figures,
        }
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(_finite(document), indent=1, allow_nan=False))
        self._show(document, report)
        if options.plant:
            said = "caught" if caught else f"NOT caught: it must break '{self.plants[options.plant]}'"
            Console().print(f"the planted fault '{options.plant}' was {said}", highlight=False)
        return int(not succeeded)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=self.title)
        for name, value in self.arguments.items():
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, type=type(value), default=value, help=f"({value:g})")
        parser.add_argument(
            "--plant",
            nargs="?",
            const=next(iter(self.plants)),
            default="",
            choices=list(self.plants),
            help="plant a fault that must be caught; the status is 0 only when it is",
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found there")
        return parser

    def _show(self, document: Mapping[str, Any], report: Report) -> None:
        table = Table("promise", "found", "must be", "kept", title=self.title)
        for promise in report.promises:
            table.add_row(promise.name, f"{promise.found:g}", promise.wanted, "yes" if promise.kept else "NO")
        console = Console()
        console.print(table)
        for name, value in report.figures.items():
            console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)
        console.print(f"{document['seconds']} s", highlight=False)


def _commit() -> str:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
