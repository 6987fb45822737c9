"""A process that has imported all that a worker needs, and becomes workers by fork.

Run by exec: `python -m tidemill.training.worker.template FD SECONDS`. FD is its end of a pair of sockets that keep
messages apart. It sends one byte once it is ready; then each message to it is one worker to start: JSON with

    keeper       program and arguments of the worker's keeper, up to its FD (see `tidemill.training.keeper`)
    folder       where the keeper's files lie
    environment  the worker's variables

and three file descriptors: the keeper's lock, where it gets orders from, and what it prints to. The process ends when
the other end is closed, and when it was asked for nothing for SECONDS.

Importing torch takes seconds; a fork takes milliseconds, and shares the memory of what was imported. It is safe because
nothing has run here yet: there is one thread (looked at before every fork), no connection, no device. A fork of a
process that has used gRPC would not be.
"""

import array
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass

from tidemill import config

READY = b"r"
MAX_MESSAGE = 1 << 17
"""Largest message, in bytes."""
UNFIT = 3
"""Exit status of a process that cannot be forked."""
_NEEDED = ("tidemill.training.worker.process", "torch.onnx", "safetensors.numpy", "onnx")
_TITLE = b"python\0-m\0tidemill.training.worker\0"
_INT = array.array("i").itemsize


@dataclass(frozen=True, slots=True)
class Order:
    """A worker to start."""

    keeper: list[str]
    folder: str
    environment: dict[str, str]
    lock: int
    control: int
    printed: int

    def close(self) -> None:
        """Close its file descriptors."""
        for fd in (self.lock, self.control, self.printed):
            os.close(fd)


def receive(orders: socket.socket) -> Order | None:
    """The next order; None when there will be none."""
    text, found, _, _ = orders.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(3 * _INT))
    if not text:
        return None
    lock, control, printed = array.array("i", b"".join(data for _, _, data in found))
    said = json.loads(text)
    return Order(said["keeper"], said["folder"], said["environment"], lock, control, printed)


def serve(orders: socket.socket, idle: float) -> Order | None:
    """Start keepers, each with a worker. Returns in each worker, with its order, and in this process with None.

    Args:
        orders: this process's end.
        idle: seconds without an order after which it ends.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers: what they have to say is in files
    orders.send(READY)
    look = select.poll()
    look.register(orders, select.POLLIN)
    while True:
        if not look.poll(idle * 1000):
            if idle == 0:
                return None
            orders.shutdown(socket.SHUT_RD)  # what was sent before is still there
            idle = 0
            continue
        order = receive(orders)
        if order is None or len(os.listdir("/proc/self/task")) > 1:
            return None
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            orders.close()
            _keep(order)  # returns in the worker alone
            return order
        order.close()


def _keep(order: Order) -> None:
    """Fork the worker, and become its keeper by exec: so the worker is the keeper's child."""
    worker = -1
    try:
        os.setsid()
        told, tell = os.pipe()
        printed, prints = os.pipe()
        worker = os.fork()
        if worker == 0:
            _settle(told, prints, order.environment)
            return
        _open(os.open(os.devnull, os.O_RDONLY), order.printed, order.printed)
        for fd in (order.lock, order.control, printed, tell):
            os.set_inheritable(fd, True)
        os.close(told)
        os.close(prints)
        arguments = [*order.keeper, str(order.control), "-", str(worker), str(printed)]
        os.execve(sys.executable, arguments, config.environ())
    except OSError as error:
        if worker > 0:
            os.kill(worker, signal.SIGKILL)
        with open(os.path.join(order.folder, "error"), "w", encoding="ascii") as file:
            file.write(str(error.errno))
        os._exit(1)


def _settle(told: int, prints: int, environment: dict[str, str]) -> None:
    """Make a worker of this process: nothing of the template's is open in it, and its variables are its own."""
    os.setsid()
    _open(told, prints, prints)
    os.closerange(3, 1 << 20)
    config.set_environment(environment)
    _name(_TITLE)


def _open(*fds: int) -> None:
    """Make these standard input, output and error."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)


def _name(title: bytes) -> None:
    """Show a command line of the worker's own, where it fits: Linux shows what lies where the first one lay."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
    if 0 < len(title) <= end - start:
        ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)


def main() -> int:
    """Start workers, and become them; the exit status."""
    fd, idle = int(sys.argv[1]), float(sys.argv[2])
    for module in _NEEDED:
        importlib.import_module(module)
    if len(os.listdir("/proc/self/task")) > 1:
        return UNFIT
    order = serve(socket.socket(fileno=fd), idle)
    if order is None:
        return 0
    from tidemill.training.worker.__main__ import main as work

    sys.argv[1:] = []
    return work()


if __name__ == "__main__":
    sys.exit(main())
