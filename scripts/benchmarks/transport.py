"""The transport ladder: a memory copy, shared memory, a socket, gRPC, protobuf and ours, and where the time goes."""

import argparse
import statistics
import sys
import time
from contextlib import ExitStack, closing

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.ladder import plot
from scripts.benchmarks.ladder.payloads import PAYLOADS
from scripts.benchmarks.ladder.rungs import RUNGS, Others, Rung
from scripts.benchmarks.measuring import facts, gates
from scripts.benchmarks.measuring.gates import Gate
from scripts.benchmarks.measuring.pinning import pin
from scripts.benchmarks.measuring.processes import Helper, cpu_seconds, shards
from tidemill.rpc.allocator import keep_chunks

MANY = 1.2
"""Most that 200 small tensors may take over one bucket of their size."""


def over(rung: str) -> Gate:
    """The promise about small tensors for one of our ways."""
    return Gate(
        f"200 small tensors / one bucket of their size, {rung}",
        lambda found: found[f"many {rung}"] / found[f"bucket {rung}"],
        MANY,
    )


GATES = [over("ours-grpc"), over("ours-shm")]


def main() -> int:
    """Measure, print, draw, and keep the figures as JSON; 1 when a promise is broken."""
    options = arguments()
    pin(options.threads)
    payloads, rungs = options.payloads.split(","), options.rungs.split(",")
    rounds = measure(payloads, rungs, options)
    figures = gates.medians(rounds)
    show(figures, payloads, rungs)
    judged = gates.judge(GATES, rounds)
    gates.show(judged)
    picture = options.json.with_suffix(".svg")
    plot.draw(picture, figures, payloads, rungs)
    facts.keep(options, {"medians": figures, "promises": judged, "rounds": rounds})
    print(f"plot: {picture}")
    return int(gates.broken(judged))


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payloads", default=",".join(PAYLOADS), help="of " + ", ".join(PAYLOADS))
    parser.add_argument("--rungs", default=",".join(RUNGS), help="of " + ", ".join(RUNGS))
    parser.add_argument("--repeats", type=int, default=0, help="of a rung in a round; 0 = as the payload has it")
    facts.common(parser)
    options = facts.parsed(parser, "transport")
    for name, known in (("payloads", PAYLOADS), ("rungs", RUNGS)):
        wrong = set(getattr(options, name).split(",")) - set(known)
        if wrong:
            parser.error(f"--{name}: {', '.join(sorted(wrong))}: none of {', '.join(known)}")
    return options


def measure(payloads: list[str], rungs: list[str], options: argparse.Namespace) -> list[dict[str, float]]:
    """For each round the seconds of an exchange by `payload rung`, and the CPU seconds by `payload rung cpu`."""
    keep_chunks()
    rounds: list[dict[str, float]] = [{} for _ in range(options.rounds)]
    with ExitStack() as stack:
        peer = stack.enter_context(Helper("scripts.benchmarks.ladder.peer"))
        (shard,) = stack.enter_context(shards(1, options.threads))
        others = Others(peer, shard)
        climbed = {
            (payload, name): stack.enter_context(closing(RUNGS[name](payload, others)))
            for payload in payloads
            for name in rungs
        }
        for rung in climbed.values():
            rung.check()
            rung.check()
        for number, found in enumerate(rounds):
            print(f"round {number + 1}", file=sys.stderr)
            for (payload, name), rung in climbed.items():
                taken, computed = timed(rung, options.repeats or rung.payload.repeats)
                found[f"{payload} {name}"], found[f"{payload} {name} cpu"] = taken, computed
    return rounds


def timed(rung: Rung, repeats: int) -> tuple[float, float]:
    """The median seconds of an exchange, and the mean CPU seconds of both processes for one."""
    times = []
    before = cpu_seconds(rung.other) + time.process_time()
    for _ in range(repeats):
        began = time.perf_counter()
        rung.exchange()
        times.append(time.perf_counter() - began)
    return statistics.median(times), (cpu_seconds(rung.other) + time.process_time() - before) / repeats


def show(figures: dict[str, float], payloads: list[str], rungs: list[str]) -> None:
    """Print a table a payload."""
    console = Console(width=140)
    for payload in payloads:
        columns = ["ms", "GB/s both ways", "times a copy", "CPU ms", "beyond", "ms more", "what for"]
        table = Table("rung", *columns, title=f"{PAYLOADS[payload].text}: gradients up, parameters down")
        for name in rungs:
            taken = figures[f"{payload} {name}"]
            copy, below = figures.get(f"{payload} memory"), figures.get(f"{payload} {RUNGS[name].below}")
            table.add_row(
                RUNGS[name].text,
                f"{1000 * taken:.2f}",
                f"{2 * PAYLOADS[payload].bytes / taken / 1e9:.2f}",
                "-" if copy is None else f"{taken / copy:.1f}",
                f"{1000 * figures[f'{payload} {name} cpu']:.2f}",
                "-" if below is None else RUNGS[RUNGS[name].below].text,
                "-" if below is None else f"{1000 * (taken - below):+.2f}",
                RUNGS[name].adds,
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
