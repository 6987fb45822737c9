"""Shards as processes: light while idle, bounded at work, and gone without a trace."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.shards import (
    GROUP,
    Shards,
    block,
    first_values,
    gradient,
    header,
    shard_processes,
    shards,
    together,
    train,
    wire,
)
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersAdmin
from tidemill.tensors.blocks import BLOCK, Array

IDLE = """
import asyncio, json, sys
from tidemill.clients.parameters import ParametersAdmin
from tidemill.errors import Invalid
from tidemill.parameters.app import build
from tidemill.parameters.config import Config

async def main():
    app = build(Config(port=0, ops_port=0, registry_address=""))
    await app.start()
    async with ParametersAdmin([app.address]) as admin:
        await admin.list_optimizers()
        await admin.check_optimizer("adamw", {"fused": True})
        before = "torch" in sys.modules
        await admin.create_group("groups/g", [("w", (10,))], optimizer="sgd")
    await app.stop()
    print(json.dumps([before, "torch" in sys.modules]))

asyncio.run(main())
"""


def test_torch_is_imported_with_the_first_group_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [False, True]


def test_clients_are_light() -> None:
    code = "import sys, tidemill.clients.parameters; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--threads=10", "threads"),
        ("--shard=-1", "shard"),
        ("--max-groups=0", "max_groups"),
        ("--instance-ttl=1", "ttl"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(flag: str, word: str) -> None:
    command = [sys.executable, "-m", "tidemill.parameters", flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


async def test_two_processes_train_like_one_and_end_cleanly_while_pulls_wait(tmp_path: Path) -> None:
    async def trained(cluster: Shards) -> Array:
        await cluster.group(5000, optimizer="adamw", workers=2)

        def worker(rank: int) -> Array:
            with cluster.client() as client:
                client.load(first_values(5000))
                return train(client, rank, range(10))

        return (await together(lambda: worker(0), lambda: worker(1)))[0]

    async with shards() as cluster, shard_processes(tmp_path, 2) as (apart, processes):
        np.testing.assert_array_equal(await trained(cluster), await trained(apart))
        with apart.client(patience=0) as client:
            pull = asyncio.ensure_future(asyncio.to_thread(client.pull, 11))
            await asyncio.to_thread(client.versions)
            assert await asyncio.to_thread(processes[0].end) == 0
            # Which of the two depends on how far the shard's goodbye has come; both are tried again by patient clients.
            with pytest.raises((errors.Unavailable, errors.Cancelled)):
                await pull


async def test_memory_is_bounded_whatever_workers_do(tmp_path: Path) -> None:
    """Two versions, the next one, the optimizer's state and two gradients a worker, whoever is slow or broken."""
    elements, workers = 16 * BLOCK, 4
    size = 4 * elements
    async with shard_processes(tmp_path, 1) as (cluster, (process,)):
        await cluster.group(10, optimizer="momentum", name="groups/warm")
        await cluster.group(elements, optimizer="momentum", workers=workers)
        idle = process.memory()

        def work() -> None:
            with cluster.client() as client:
                client.load(first_values(elements))
                own = gradient(elements, 0, 0)
                for step in range(6):
                    # Three workers have arrived and repeat themselves; the fourth is slow.
                    for _ in range(3):
                        for rank in range(workers - 1):
                            client.push(own, worker=rank, step=step, attempt=0 if rank else 4 * step)
                    for attempt in range(4):
                        client.push(own, worker=0, step=step, attempt=4 * step + attempt)
                    client.push(own, worker=workers - 1, step=step)

        await together(work)
        # The allocator keeps some memory for itself. A gradient kept by each push would be five times as much.
        limit = idle + size * (3 + 1 + 2 * workers) + 64 * 2**20
        assert process.memory("VmHWM") < limit

        # Streams that break off, or never go on, hold one gradient a worker at most.
        with wire(cluster.addresses[0]) as raw:
            over = threading.Event()
            parts = (await cluster.admin.get_group(GROUP))[0].blocks
            data = [block(b.index, np.zeros(b.elements, np.float32)) for b in parts[:-1]]

            def endless() -> Iterator[pb.PushRequest]:
                yield header(1, 6)
                yield from data
                over.wait(60)

            calls = [raw.stub.Push.future(endless()) for _ in range(20)]
            # Each takes the place of the one before, which ends as soon as it sends more.
            await until(lambda: sum(call.done() for call in calls) == 19, timeout=60)
            assert process.memory("VmHWM") < limit
            over.set()
            held = process.memory()
        await cluster.admin.delete_group(GROUP)
        await until(lambda: process.memory() < held - 2 * size, what="the group's memory is given back")


async def test_a_killed_shard_is_reported(tmp_path: Path) -> None:
    async with shards() as cluster, shard_processes(tmp_path, 1) as (apart, (process,)):
        addresses = [*cluster.addresses, *apart.addresses]
        async with ParametersAdmin(addresses) as admin:
            both = Shards(addresses, admin, [])
            await both.group(5000)
            with both.client(patience=0.3) as client:
                client.load(first_values(5000))
                pull = asyncio.ensure_future(asyncio.to_thread(client.pull, 1))
                process.kill()
                with pytest.raises(errors.Unavailable):
                    await pull
                with pytest.raises(errors.Unavailable):
                    await asyncio.to_thread(client.push, gradient(5000, 0, 0), worker=0, step=0)
