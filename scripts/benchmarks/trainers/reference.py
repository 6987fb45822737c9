"""What synchronous systems must come to: one process goes through the data of all workers. Never timed."""

from trainers import nets
from trainers.job import Job, train


def roles(job: Job) -> list[tuple[str, int]]:
    """The one process."""
    return [("worker", 0)]


def main(role: str, index: int, job: Job) -> None:
    """Mean gradients over all workers' batches."""
    net = nets.prepare(job)
    batches = [nets.data(job, rank) for rank in range(job.workers)]

    def step(i: int) -> int:
        net.clear()
        for mine in batches:
            (net(*mine[i % len(mine)]) / job.workers).backward()
        net.descend()
        return 0

    train(job, step, net.flat, True)
