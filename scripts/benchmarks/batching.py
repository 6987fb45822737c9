"""What dynamic batching gains: answers a second of a model with a fixed cost a run, with it and without it."""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.support.batching import Marking, loaded, marked
from tidemill.errors import TidemillError
from tidemill.inference.calls import Array, Call
from tidemill.inference.configuration import DynamicBatching
from tidemill.inference.loaded import Loaded

PROMISED = 8.0
"""Times the throughput without batching, at 64 callers and 2 ms a run."""


class FixedCost(Marking):
    """Takes the same time for any batch, one at a time, without the interpreter: as a kernel would."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._device = threading.Lock()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """What the model makes of the rows."""
        with self._device:
            time.sleep(self._seconds)
        return [marked(inputs["x"])]


WAYS: Mapping[str, DynamicBatching | None] = {
    "unbatched": None,
    "dynamic": DynamicBatching(),
    "dynamic, 1 ms delay": DynamicBatching(delay=0.001),
    "dynamic, in order": DynamicBatching(preserve_order=True),
}


def measure(version: Loaded, callers: int, seconds: float) -> dict[str, float]:
    """Answers a second of so many threads, each of which asks again when it is answered; every answer is checked."""
    end = time.monotonic() + seconds
    took: list[list[float]] = [[] for _ in range(callers)]
    wrong: list[str] = []

    def work(caller: int) -> None:
        x = np.full((1, 4), caller + 1, np.int64)
        expected = marked(x)
        while (begun := time.monotonic()) < end:
            try:
                answer = version.scheduler.infer(Call(inputs={"x": x}, outputs=["y"], expires=begun + 30))
            except TidemillError as error:
                wrong.append(error.message)
                return
            ended = time.monotonic()
            if ended < end:
                took[caller].append(ended - begun)
            if not np.array_equal(answer.outputs["y"], expected):
                wrong.append(f"caller {caller} got {answer.outputs['y'].tolist()}")
                return

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise RuntimeError(wrong[0])
    books = version.statistics.snapshot()
    all_took = sorted(one for mine in took for one in mine)
    return {
        "per_second": len(all_took) / seconds,
        "rows_per_run": books.inferences / books.executions,
        "p50_ms": 1000 * all_took[len(all_took) // 2],
        "p99_ms": 1000 * all_took[len(all_took) * 99 // 100],
    }


def main() -> int:
    """Measure in turns, print, and write JSON when asked; 1 when the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--cost-ms", type=float, default=2.0, help="of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, dynamic in WAYS.items():
            version = loaded(FixedCost(options.cost_ms / 1000), max_batch=64, instances=1, dynamic=dynamic)
            try:
                found[way].append(measure(version, options.callers, options.seconds))
            finally:
                version.close()
    table = Table("way", "answers/s", "times unbatched", "rows a run", "p50 ms", "p99 ms")
    ratios = {}
    for way, rounds in found.items():
        # Each round against its own unbatched one: the machine may be busy with other things from time to time.
        pairs = zip(rounds, found["unbatched"], strict=True)
        ratios[way] = statistics.median(one["per_second"] / base["per_second"] for one, base in pairs)
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        table.add_row(
            way,
            f"{middle['per_second']:.0f}",
            f"{ratios[way]:.1f}",
            f"{middle['rows_per_run']:.1f}",
            f"{middle['p50_ms']:.1f}",
            f"{middle['p99_ms']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{options.callers} callers, {options.cost_ms:g} ms a run, median of {options.rounds}; "
        f"promised: {PROMISED:g} times unbatched at 64 callers and 2 ms"
    )
    if options.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        arguments = {"callers": options.callers, "cost_ms": options.cost_ms, "seconds": options.seconds}
        options.json.write_text(
            json.dumps({"commit": commit, **arguments, "times_unbatched": ratios, "rounds": found}, indent=1)
        )
    return int(ratios["dynamic"] < PROMISED)


if __name__ == "__main__":
    sys.exit(main())
