"""Flags that say how the workers of a job train together: far apart or in step, by which steps, over which wire."""

import argparse
from typing import Any

from tidemill.cli.values import assignment, number, whole


def add_arguments(group: Any) -> None:
    """Declare the flags. `argparse` keeps the class of its argument groups to itself."""
    group.add_argument(
        "--strategy", default="", metavar="NAME", help="parameter_server or all_reduce (parameter_server)"
    )
    group.add_argument(
        "--mode", default="", help="bsp: in step; ssp: at most --staleness steps apart; asp: nobody waits (bsp)"
    )
    group.add_argument("--staleness", type=whole(0), default=0, metavar="N", help="of ssp (%(default)s)")
    group.add_argument(
        "--arrival-order",
        action="store_true",
        help="add gradients up as they arrive: less memory of shards, other last bits each time",
    )
    group.add_argument(
        "--stragglers",
        default="",
        metavar="POLICY",
        help="of bsp: wait for late workers, drop their gradients, or fail (wait)",
    )
    group.add_argument(
        "--most-dropped",
        type=whole(0),
        default=0,
        metavar="N",
        help="of drop: most workers without which a step is made; worker 0 is always waited for",
    )
    group.add_argument(
        "--straggler-seconds",
        type=number(0.0),
        default=0.0,
        metavar="S",
        help="since a step's first gradient; of drop: wait so long all the same; of fail: then it is too late",
    )
    _named(group, "--schedule", "of the learning rate; see `tidemill catalogue` (constant)")
    group.add_argument(
        "--clip-norm", type=number(0.0), default=0.0, metavar="X", help="largest norm of a gradient; 0 = any"
    )
    group.add_argument(
        "--l1", type=number(0.0), default=0.0, metavar="X", help="weight of the parameters' magnitudes in the loss"
    )
    _named(group, "--codec", "how gradients travel: fp32, fp16, bf16, int8, topk, or auto (fp32)")
    group.add_argument(
        "--durability",
        default="",
        metavar="MODE",
        help="what outlives the end of a shard: none, wal, replicated or checkpoint (none)",
    )
    group.add_argument("--fsync", action="store_true", help="of wal: acknowledge when the disk has it")
    group.add_argument(
        "--interval-steps", type=whole(0), default=0, metavar="N", help="of checkpoint: steps between two; 0 = 100"
    )
    group.add_argument(
        "--checkpoint-steps",
        type=whole(0),
        default=0,
        metavar="N",
        help="of all_reduce: steps between checkpoints beside those of epochs; 0 = only those",
    )


def _named(group: Any, flag: str, help: str) -> None:
    """A plug-in and its parameters."""
    group.add_argument(flag, default="", metavar="NAME", help=help)
    group.add_argument(
        f"{flag}-parameter",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help=f"of the {flag.removeprefix('--')}; repeatable",
    )


def spec(options: argparse.Namespace) -> dict[str, Any]:
    """These fields of a job's spec."""
    return {
        "strategy": options.strategy,
        "consistency": {
            "mode": options.mode,
            "staleness": options.staleness,
            "arrival_order": options.arrival_order,
        },
        "stragglers": {
            "policy": options.stragglers,
            "most": options.most_dropped,
            "after_seconds": options.straggler_seconds,
        },
        "schedule": {"name": options.schedule, "parameters": dict(options.schedule_parameter)},
        "clip_norm": options.clip_norm,
        "l1": options.l1,
        "codec": {"name": options.codec, "parameters": dict(options.codec_parameter)},
        "durability": {
            "mode": options.durability,
            "fsync": options.fsync,
            "interval_steps": options.interval_steps,
        },
        "checkpoint_steps": options.checkpoint_steps,
    }
