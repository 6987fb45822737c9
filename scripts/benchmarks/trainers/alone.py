"""Compute alone: every worker makes whole steps of its own, at the same time as the others, and sends nothing."""

from trainers import nets
from trainers.job import Job, train


def roles(job: Job) -> list[tuple[str, int]]:
    """The processes, in the order in which they are started."""
    return [("worker", rank) for rank in range(job.workers)]


def known(job: Job) -> bool:
    """Whether its parameters must be those that one process with all workers' data comes to."""
    return job.workers == 1


def main(role: str, index: int, job: Job) -> None:
    """One worker."""
    net, batches = nets.prepare(job), nets.data(job, index)

    def step(i: int) -> int:
        net.clear()
        net(*batches[i % len(batches)]).backward()
        net.descend()
        return 0

    train(job, step, net.flat, index == 0)
