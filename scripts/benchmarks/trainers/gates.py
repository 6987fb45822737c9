"""What is promised of distributed training, as ratios within one round."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOOR = "alone"
"""Compute without communication."""
OURS = "ours-"
"""What the names of our modes begin with."""
TENSORFLOW = ("tfps", "tfps10")

Round = Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]
"""(model, workers) -> system -> figures."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise: a ratio that must not pass a limit."""

    text: str
    ratio: Callable[[Round], float]
    """Raises KeyError when a system that it needs was not measured."""
    limit: float
    least: bool = False
    """Whether the ratio must be at least, not at most the limit."""


def step(found: Round, system: str, model: str, workers: int) -> float:
    """Milliseconds of a step."""
    return float(found[model, workers][system]["p50"])


def overhead(found: Round, system: str, model: str, workers: int) -> float:
    """Milliseconds of a step beyond the same round's compute alone; noise may make it negative."""
    return step(found, system, model, workers) - step(found, FLOOR, model, workers)


def some(found: Round, system: str, model: str, workers: int) -> float:
    """An overhead to divide by: at least a hundredth of compute alone."""
    return max(overhead(found, system, model, workers), step(found, FLOOR, model, workers) / 100)


def beyond(ours: str, peer: str) -> Callable[[Round], float]:
    """Our overhead over a peer's, on model L with two workers."""
    return lambda found: overhead(found, OURS + ours, "L", 2) / some(found, peer, "L", 2)


def against(ours: str, *peers: str) -> Callable[[Round], float]:
    """Our step over the quickest of some peers', likewise."""

    def ratio(found: Round) -> float:
        there = [peer for peer in peers if peer in found["L", 2]]
        if not there:
            raise KeyError(peers)
        return step(found, OURS + ours, "L", 2) / min(step(found, peer, "L", 2) for peer in there)

    return ratio


def many_tensors(found: Round) -> float:
    """Overhead of 200 small tensors over that of one of their size, two workers."""
    name = OURS + "bsp-grpc"
    return overhead(found, name, "T", 2) / some(found, name, "T1", 2)


def sparse(found: Round) -> float:
    """Bytes of a dense step over those of one that moves touched rows alone, two workers."""
    rows = found["E", 2]
    return float(rows[OURS + "bsp-grpc"]["payload"] / rows[OURS + "sparse-grpc"]["payload"])


PROMISES = [
    Promise("L, 2 workers: overhead of BSP over gRPC / DDP's", beyond("bsp-grpc", "ddp"), 3.0),
    Promise("L, 2 workers: overhead of BSP over shared memory / DDP's", beyond("bsp-shm", "ddp"), 0.7),
    Promise("L, 2 workers: step of BSP over gRPC / TensorFlow's", against("bsp-grpc", *TENSORFLOW), 1.3),
    Promise("L, 2 workers: step of ASP over gRPC / TensorFlow's", against("asp-grpc", *TENSORFLOW), 1.1),
    Promise("L, 2 workers: step of BSP over shared memory / TensorFlow's", against("bsp-shm", *TENSORFLOW), 0.75),
    Promise("L, 2 workers: step of BSP over gRPC / PyTorch RPC's", against("bsp-grpc", "torchrpc"), 1.2),
    Promise("200 small tensors / one bucket of their size, overhead, 2 workers", many_tensors, 1.2),
    Promise("E, 2 workers: bytes of dense steps / sparse", sparse, 20.0, least=True),
]


def judge(rounds: list[Round]) -> list[dict[str, Any]]:
    """For each promise the median ratio over the rounds, and whether it was kept; None where it was not measured."""
    rows = []
    for promise in PROMISES:
        try:
            ratios = [promise.ratio(found) for found in rounds]
        except KeyError:
            ratios = []
        middle = statistics.median(ratios) if ratios else None
        kept = None if middle is None else (middle >= promise.limit if promise.least else middle <= promise.limit)
        rows.append(
            {
                "promise": promise.text,
                "limit": promise.limit,
                "least": promise.least,
                "ratio": middle,
                "ratios": ratios,
                "kept": kept,
            }
        )
    return rows
