"""Trains a job on a Ray cluster of two nodes, one of which is killed: `ray_training.py FOLDER PID OPTION...`.

It runs in the cluster's network namespace, where workers reach its services. PID is the process that has started all of
the node to kill. What it has seen comes out as JSON.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.raycluster import ancestors, kill_tree
from tests.support.training import lives, spec, world
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

DIGITS = {"model": {"name": "mlp"}, "dataset": {"builtin": "digits"}, "workers": 2, "epochs": 6, "seed": 3}


async def _train(client: TrainingClient, node: int, seen: dict[str, Any]) -> None:
    name = (await client.create_job({**spec(), **DIGITS, "max_restarts": 3})).name
    pids: set[int] = set()
    async for job in client.watch_job(name):
        workers = [worker for worker in job.workers if worker.pid and worker.step > 0]
        pids |= {worker.pid for worker in job.workers if worker.pid}
        if "first" not in seen and len(workers) == 2:
            seen["first"] = [node in ancestors(worker.pid) for worker in workers]
            kill_tree(node)
        if "last" not in seen and job.restarts and len(workers) == 2:
            seen["last"] = [lives(worker.pid) and node not in ancestors(worker.pid) for worker in workers]
    seen["state"], seen["restarts"], seen["error"] = pb.Job.State.Name(job.state), job.restarts, job.error
    seen["log"] = [line.text async for line in client.logs(name)]
    await until(lambda: not any(lives(pid) for pid in pids), 10, "all workers are gone")


async def _run(folder: Path, node: int, options: tuple[str, ...]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    async with world(folder) as neighbours:
        settings: dict[str, Any] = {
            "launcher": "ray",
            "launcher_options": options,
            "worker_command": (),
            "lease_seconds": 10.0,
        }
        async with neighbours.training(**settings) as client:
            await _train(client, node, seen)
    return seen


if __name__ == "__main__":
    found = asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:])))
    sys.stdout.write(json.dumps(found))
