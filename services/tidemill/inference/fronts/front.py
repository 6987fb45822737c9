"""One front: does what the first process says, in order, until that goes."""

import json
from typing import Any

from tidemill import records
from tidemill.inference.fronts.build import Front, Start, build
from tidemill.inference.fronts.lines import Lines
from tidemill.inference.fronts.picture import Picture
from tidemill.telemetry import logs


async def serve(lines: Lines) -> int:
    """Do what is said on `lines`; the exit status."""
    front: Front | None = None
    while (order := await lines.receive()) is not None:
        answer: dict[str, Any] = {"order": order["order"]}
        if "start" in order:
            start = records.decode(Start, json.dumps(order["start"]).encode())
            logs.configure("inference", start.config.log_level, start.config.log_style)
            front = build(start)
            _trace(front, order["start"]["trace"])
            front.logs.update(order["start"]["log"])
        elif front is None:
            return 2
        else:
            answer |= await _do(front, order)
        await lines.send(answer)
    if front is not None:
        await front.close()
    return 0


async def _do(front: Front, order: dict[str, Any]) -> dict[str, Any]:
    if "picture" in order:
        front.mirror.show(records.decode(Picture, order["picture"].encode()))
    elif "settle" in order:
        await front.mirror.settled()
    elif "listen" in order:
        await front.listen()
    elif "serving" in order:
        await front.server.set_serving(order["serving"])
    elif "trace" in order:
        _trace(front, order["trace"])
    elif "log" in order:
        front.logs.update(order["log"])
    elif "report" in order:
        return front.report()
    return {}


def _trace(front: Front, settings: list[tuple[str, dict[str, list[str]]]]) -> None:
    for model, changes in settings:
        front.tracing.update(model, changes)
