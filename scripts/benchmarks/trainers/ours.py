"""Tidemill's parameter server: shards in processes of their own, workers with `ParametersClient`."""

import asyncio
import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.rpc.allocator import keep_all
from trainers import nets
from trainers.job import Job, train
from trainers.modes import MODES, Mode, Worker, begun, overlap, share

GROUP = "groups/benchmark"
PATIENCE = 60.0


def known(job: Job) -> bool:
    """Whether its parameters must be those that one process with all workers' data comes to."""
    return MODES[job.option].exact


def roles(job: Job) -> list[tuple[str, int]]:
    """The processes, in the order in which they are started."""
    shards = [("shard", index) for index in range(MODES[job.option].shards)]
    return [*shards, *(("worker", rank) for rank in range(job.workers))]


def command(role: str, index: int, job: Job) -> list[str] | None:
    """How a shard is started: as users do; None = a worker, which is started like everybody's."""
    if role == "worker":
        return None
    settings = {
        "shard": str(index),
        "port": "0",
        "ops-port": "0",
        "registry-address": "",
        "announce-file": str(announced(job, index)),
        "optimizer-threads": str(job.threads),
        "log-level": "WARNING",
        **MODES[job.option].settings,
    }
    return [sys.executable, "-m", "tidemill.parameters", *(f"--{name}={value}" for name, value in settings.items())]


def announced(job: Job, shard: int) -> Path:
    """Where a shard says which port it has."""
    return Path(job.folder) / f"shard-{shard}.json"


def address(job: Job, shard: int) -> str:
    """A shard's address, once it serves."""
    end = time.monotonic() + PATIENCE
    while not announced(job, shard).exists():
        if time.monotonic() > end:
            sys.exit(f"shard {shard} did not start")
        time.sleep(0.02)
    return f"127.0.0.1:{json.loads(announced(job, shard).read_text())['grpc']}"


def main(role: str, index: int, job: Job) -> None:
    """One worker: parameters and gradients are views of one vector each, as in the workers of training jobs."""
    keep_all()
    mode = MODES[job.option]
    if "sparse" in mode.group:
        return by_rows(index, job, mode)
    net, batches = nets.prepare(job, sparse=False), nets.data(job, index)
    values = list(net.values)
    first = net.flat()
    flat, gradient = torch.from_numpy(first.copy()), torch.zeros(len(first))
    addresses = [address(job, shard) for shard in range(mode.shards)]
    if index == 0:
        asyncio.run(create(addresses, net, job, mode))
    with ParametersClient(addresses, GROUP, **mode.client) as client:
        if index == 0:  # the others step only when all processes are ready
            client.load(first)
        del first
        worker = Worker(client, index, net.model.batch, flat.numpy(), gradient.numpy())
        shares = mode.exchange is share
        taken: list[Any] = [None, None]

        def take() -> None:
            """Compute with the parameters and gradients where they lie now."""
            if shares and (held := client.gradient_memory(index)) is not None:
                worker.gradient = held
            if taken[0] is worker.flat and taken[1] is worker.gradient:
                return
            taken[:] = worker.flat, worker.gradient
            vectors = [torch.from_numpy(vector) for vector in taken]
            place = 0
            for number, value in enumerate(values):
                part = slice(place, place + value.numel())
                value.data, places[number] = (vector[part].view(value.shape) for vector in vectors)
                place = part.stop

        def put(number: int, value: torch.Tensor) -> None:
            """Copy a gradient where it belongs: that moves less than to clear that place and add to it."""
            places[number].copy_(value.grad)
            value.grad = None
            if worker.outgoing is not None:
                worker.outgoing.ready(starts[number], starts[number] + value.numel())

        places = [torch.empty(0)] * len(values)
        starts = [0, *itertools.accumulate(value.numel() for value in values)]
        for number, value in enumerate(values):
            value.register_post_accumulate_grad_hook(partial(put, number))

        def step(i: int) -> int:
            take()
            if mode.exchange is overlap and client.leaves_early(index):
                worker.outgoing = begun(worker, i)
            net(*batches[i % len(batches)]).backward()
            moved = mode.exchange(worker, i)
            take()
            return moved

        train(job, step, net.flat, index == 0)


def by_rows(index: int, job: Job, mode: Mode) -> None:
    """One worker of a model that is one table, whose gradients and parameters travel by the rows of a batch."""
    net, batches = nets.prepare(job), nets.data(job, index)
    (table,) = net.values
    addresses = [address(job, shard) for shard in range(mode.shards)]
    if index == 0:
        asyncio.run(create(addresses, net, job, mode))
    none = np.empty(0, np.float32)
    done = 0
    with ParametersClient(addresses, GROUP, **mode.client) as client:
        if index == 0:
            client.load(net.flat())

        def step(i: int) -> int:
            nonlocal done
            x, y = batches[i % len(batches)]
            wanted = np.sort(y.numpy())
            _, _, found = client.pull_rows(i, {"t0": wanted}, worker=index)
            table.data[torch.from_numpy(wanted)] = torch.from_numpy(found["t0"])
            table.grad = None
            net(x, y).backward()
            gradient = table.grad.coalesce()
            rows = gradient.indices()[0].numpy(), gradient.values().numpy()
            client.push_rows(none, {"t0": rows}, worker=index, step=i, samples=net.model.batch)
            done = i + 1
            return int(found["t0"].nbytes + sum(part.nbytes for part in rows) + wanted.nbytes)

        train(job, step, lambda: client.pull(done)[1], index == 0)


async def create(addresses: list[str], net: nets.Net, job: Job, mode: Mode) -> None:
    """Create the group."""
    tensors = [(f"t{index}", value.shape) for index, value in enumerate(net.values)]
    parameters = {"learning_rate": net.model.rate}
    async with ParametersAdmin(addresses) as admin:
        await admin.create_group(
            GROUP, tensors, optimizer="sgd", parameters=parameters, workers=job.workers, **mode.group
        )
