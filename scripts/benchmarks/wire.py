"""Step time of push and pull by codec, and of gradients that leave during backward; at 1 Gb/s and on loopback."""

import argparse
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from scripts.benchmarks.line.steps import AFTER, DURING, run, turns
from scripts.benchmarks.measuring import facts, gates
from scripts.benchmarks.measuring.gates import Gate, Round
from scripts.benchmarks.measuring.pinning import pin
from scripts.benchmarks.measuring.processes import Helper, shards
from tidemill.compression.choice import DEFAULT
from tidemill.rpc.allocator import keep_chunks

LINE, LOOPBACK = "line", "loopback"
CODECS = ("fp32", "bf16", "int8", "topk", "auto")
QUICKER = {"bf16": 1.7, "int8": 2.5, "topk": 8.0}
"""Steps of fp32 over those of each codec, at least, through the line."""
NEAR = 1.1
"""Most that a step of `auto` may take over one of the best codec that it may choose."""

SOONER = 1.15
"""A step of gradients that leave after backward over one of those that leave during it, at least, through the line."""


def quicker(codec: str, limit: float) -> Gate:
    """The promise of one codec."""

    def ratio(found: Round) -> float:
        return found[f"{LINE} fp32"] / found[f"{LINE} {codec}"]

    return Gate(f"1 Gb/s: step by fp32 / by {codec}", ratio, limit, least=True)


def near(line: str, text: str) -> Gate:
    """The promise of `auto`."""

    def ratio(found: Round) -> float:
        return found[f"{line} auto"] / min(found[f"{line} {codec}"] for codec in DEFAULT)

    return Gate(f"{text}: step by auto / by the best that it may choose", ratio, NEAR)


def sooner(line: str, text: str, limit: float) -> Gate:
    """The promise of gradients that leave early."""

    def ratio(found: Round) -> float:
        return found[f"{line} {AFTER}"] / found[f"{line} {DURING}"]

    return Gate(f"{text}: step of gradients sent after backward / during it", ratio, limit, least=True)


GATES = [*(quicker(codec, limit) for codec, limit in QUICKER.items()), near(LINE, "1 Gb/s"), near(LOOPBACK, "loopback")]
GATES += [sooner(LINE, "1 Gb/s", SOONER), sooner(LOOPBACK, "loopback", 1 / NEAR)]


def main() -> int:
    """Measure, print, and keep the figures as JSON; 1 when a promise is broken."""
    options = arguments()
    pin(options.threads)
    rounds, notes = measure(options)
    figures = gates.medians(rounds)
    show(figures, notes, options)
    judged = gates.judge(GATES, rounds)
    gates.show(judged)
    facts.keep(options, {"medians": figures, "notes": notes, "promises": judged, "rounds": rounds})
    return int(gates.broken(judged))


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--lines", default=f"{LINE},{LOOPBACK}")
    parser.add_argument("--elements", type=int, default=25_000_000, help="of the gradients, float32")
    parser.add_argument("--backward", type=float, default=0.5, help="seconds; 0 = leave that comparison out")
    parser.add_argument("--gigabits", type=float, default=1.0, help="a second, each way, of the line")
    parser.add_argument("--warm", type=int, default=2, help="steps that are not timed, of each codec in each round")
    parser.add_argument("--steps", type=int, default=2, help="timed ones")
    facts.common(parser)
    options = facts.parsed(parser, "wire")
    for name, known in (("codecs", CODECS), ("lines", (LINE, LOOPBACK))):
        wrong = set(getattr(options, name).split(",")) - set(known)
        if wrong:
            parser.error(f"--{name}: {', '.join(sorted(wrong))}: none of {', '.join(known)}")
    if options.elements < 1 or options.gigabits <= 0 or options.steps < 1 or min(options.warm, options.backward) < 0:
        parser.error("--elements, --gigabits and --steps must be positive, --warm and --backward not negative")
    return options


def measure(options: argparse.Namespace) -> tuple[list[dict[str, float]], dict[str, str]]:
    """For each round the seconds of a step by `line codec`, with push, pull and bytes; and remarks likewise."""
    keep_chunks()
    gradients = np.random.default_rng(7).standard_normal(options.elements, np.float32)
    rounds: list[dict[str, float]] = [{} for _ in range(options.rounds)]
    notes: dict[str, str] = {}
    with ExitStack() as stack:
        (shard,) = stack.enter_context(shards(1, options.threads))
        rate = options.gigabits * 1e9 / 8
        proxy = stack.enter_context(Helper("scripts.benchmarks.line.proxy", shard.address, f"--rate={rate}"))
        ways: dict[str, tuple[str, Any]] = {
            LINE: (f"127.0.0.1:{proxy.hear()['port']}", proxy),
            LOOPBACK: (shard.address, None),
        }
        for number, found in enumerate(rounds):
            for line in options.lines.split(","):
                for codec in options.codecs.split(","):
                    name = f"{line} {codec}"
                    print(f"round {number + 1}: {name}", file=sys.stderr)
                    steps = run(shard, ways[line], codec, gradients, options.warm, options.steps)
                    found[name] = statistics.median(map(sum, zip(steps.push, steps.pull, strict=True)))
                    found[f"{name} push"] = statistics.median(steps.push)
                    found[f"{name} pull"] = statistics.median(steps.pull)
                    if steps.up is not None and steps.down is not None:
                        found[f"{name} up"], found[f"{name} down"] = steps.up, steps.down
                    if steps.chose:
                        notes[name] = steps.chose
                if options.backward:
                    print(f"round {number + 1}: {line}, backward", file=sys.stderr)
                    times = turns(shard, ways[line][0], gradients, options.backward, options.warm, options.steps)
                    found.update({f"{line} {kind}": statistics.median(spans) for kind, spans in times.items()})
    return rounds, notes


def show(figures: dict[str, float], notes: dict[str, str], options: argparse.Namespace) -> None:
    """Print a table a line."""
    console = Console(width=130)
    texts = {LINE: f"{options.gigabits:g} Gb/s each way", LOOPBACK: "loopback"}
    for line in options.lines.split(","):
        columns = ["step ms", "fp32 / this", "push ms", "pull ms", "MB up", "MB down"]
        table = Table("codec", *columns, title=f"{options.elements} float32, one worker, one shard; {texts[line]}")
        for codec in options.codecs.split(","):
            name = f"{line} {codec}"
            if name not in figures:
                continue
            exact = figures.get(f"{line} fp32")
            moved = [figures.get(f"{name} {way}") for way in ("up", "down")]
            table.add_row(
                codec,
                f"{1000 * figures[name]:.1f}",
                "-" if exact is None else f"{exact / figures[name]:.2f}",
                f"{1000 * figures[f'{name} push']:.1f}",
                f"{1000 * figures[f'{name} pull']:.1f}",
                *("-" if way is None else f"{way / 1e6:.2f}" for way in moved),
            )
        console.print(table)
        times = [
            f"{kind} {1000 * figures[f'{line} {kind}']:.1f}" for kind in (AFTER, DURING) if f"{line} {kind}" in figures
        ]
        if times:
            console.print(
                f"gradients that take {options.backward:g} s to come: step ms when they leave {', '.join(times)}"
            )
    for name, note in notes.items():
        console.print(f"{name}: {note}")


if __name__ == "__main__":
    sys.exit(main())
