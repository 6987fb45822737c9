"""PyTorch RPC: one server averages the gradients of a round and answers every worker with the new parameters.

The pattern of the batch-updating server that PyTorch's own examples show, with gradients added inside of the lock.
"""

import os
import threading
from typing import Any, ClassVar

import torch
from torch.distributed import rpc
from torch.futures import Future

from trainers import nets
from trainers.job import Job, train

PACKAGES: tuple[str, ...] = ()
"""None: it is in the PyTorch that the others compute with as well."""


def roles(job: Job) -> list[tuple[str, int]]:
    """The processes, in the order in which they are started."""
    return [("server", 0), *(("worker", rank) for rank in range(job.workers))]


class Server:
    """Holds the parameters; one of them in a process."""

    one: ClassVar["Server"]

    def __init__(self, job: Job) -> None:
        self._net = nets.prepare(job)
        self._lock = threading.Lock()
        self._workers = job.workers
        self._arrived = 0
        self._next: Future[Any] = Future()

    def push(self, gradients: list[Any]) -> Any:
        """Take one worker's gradients; a future of the parameters after this round."""
        with self._lock:
            values = list(self._net.values)
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient if value.grad is None else value.grad.add_(gradient)
            self._arrived += 1
            answer = self._next
            if self._arrived == self._workers:
                for value in values:
                    value.grad.div_(self._workers)
                self._net.descend()
                self._net.clear()
                self._arrived, self._next = 0, Future()
                answer.set_result([value.detach() for value in values])
        return answer


def known(job: Job) -> bool:
    """Whether its parameters must be those that one process with all workers' data comes to."""
    return True


def main(role: str, index: int, job: Job) -> None:
    """The server, or one worker."""
    os.environ.update({"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"})
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{job.ports[0]}")
    if role == "server":
        Server.one = Server(job)
        rpc.init_rpc("server", rank=0, world_size=job.workers + 1, rpc_backend_options=options)
        rpc.shutdown()
        return
    net, batches = nets.prepare(job), nets.data(job, index)
    rpc.init_rpc(f"worker{index}", rank=index + 1, world_size=job.workers + 1, rpc_backend_options=options)
    values = list(net.values)

    def step(i: int) -> int:
        net.clear()
        net(*batches[i % len(batches)]).backward()
        gradients = [value.grad for value in values]
        with torch.no_grad():
            answer = rpc.rpc_sync("server", push, args=(gradients,))
            for value, new in zip(values, answer, strict=True):
                value.data = new
        return nets.size(gradients) + nets.size(answer)

    train(job, step, net.flat, index == 0)
    rpc.shutdown()


@rpc.functions.async_execution
def push(gradients: list[Any]) -> Any:
    """What a worker calls on the server."""
    return Server.one.push(gradients)
