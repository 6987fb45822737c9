"""PyTorch's DistributedDataParallel over gloo: an all-reduce of 25 MiB buckets during the backward pass."""

import os

from trainers import nets
from trainers.job import Job, train

PACKAGES: tuple[str, ...] = ()
"""None: it is in the PyTorch that the others compute with as well."""


def roles(job: Job) -> list[tuple[str, int]]:
    """The processes, in the order in which they are started."""
    return [("worker", rank) for rank in range(job.workers)]


def known(job: Job) -> bool:
    """Whether its parameters must be those that one process with all workers' data comes to."""
    return True


def main(role: str, index: int, job: Job) -> None:
    """One rank."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    net, batches = nets.prepare(job), nets.data(job, index)
    address = f"tcp://127.0.0.1:{job.ports[0]}"
    distributed.init_process_group("gloo", init_method=address, rank=index, world_size=job.workers)
    wrapped = DistributedDataParallel(net, gradient_as_bucket_view=net.model.kind != "embedding")

    def step(i: int) -> int:
        net.clear()
        wrapped(*batches[i % len(batches)]).backward()
        net.descend()
        # A ring sends and receives this; gathered sparse gradients come from each of the others.
        others = job.workers - 1
        sent = nets.size(value.grad for value in net.values)
        if net.model.kind == "embedding":
            return 2 * others * sent // max(job.workers, 1)
        return 4 * sent * others // job.workers

    train(job, step, net.flat, index == 0)
    distributed.destroy_process_group()
