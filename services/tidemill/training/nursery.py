"""The process that workers are forked from, as their launcher sees it: see `tidemill.training.worker.template`."""

import array
import asyncio
import json
import logging
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tidemill.training.worker.template import MAX_MESSAGE

LOG = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Longest time that its imports may take."""
IDLE_SECONDS = 300.0
"""Time without a new worker after which it ends, and gives its memory back."""


class Nursery:
    """Starts that process when a worker is wanted and there is none.

    Args:
        command: program and arguments of it, without those that this adds.
        environment: its variables.
        idle: seconds without a worker after which it ends.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], idle: float = IDLE_SECONDS) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._idle = idle
        self._lock = asyncio.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._is_fit = bool(self._command)

    @property
    def pid(self) -> int:
        """Its process id; 0 = it does not run."""
        return 0 if self._child is None else self._child.pid

    async def ready(self) -> bool:
        """Whether workers can be forked, once that is known. If they cannot, it is not tried again."""
        async with self._lock:
            if self._child is not None and self._child.poll() is not None:
                await self._end()
            if self._child is None and self._is_fit:
                self._is_fit = await self._start()
                if not self._is_fit:
                    LOG.warning("workers cannot be forked here: each is started by itself")
            return self._is_fit

    async def _start(self) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders = ours
        ours.setblocking(False)
        try:
            with theirs:
                self._child = self._spawn(theirs.fileno())
            async with asyncio.timeout(START_SECONDS):
                if await asyncio.get_running_loop().sock_recv(ours, 1):
                    return True
        except (OSError, TimeoutError):
            pass
        except BaseException:
            await self._end()
            raise
        await self._end()
        return False

    def _spawn(self, fd: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            (*self._command, str(fd), f"{self._idle:g}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
            pass_fds=(fd,),
        )

    def fork(self, keeper: Sequence[str], folder: str, environment: Mapping[str, str], fds: Sequence[int]) -> bool:
        """Have one worker forked under a keeper.

        Args:
            keeper, folder, environment: what the process is told.
            fds: the lock, the control and the output of the keeper.

        Returns:
            Whether it was told so; if not, nothing was started.
        """
        assert self._orders is not None
        text = json.dumps({"keeper": list(keeper), "folder": folder, "environment": dict(environment)}).encode()
        if len(text) > MAX_MESSAGE:
            return False
        try:
            self._orders.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        except OSError:  # it has just ended, or is too busy
            return False
        return True

    async def close(self) -> None:
        """End it; the workers go on."""
        async with self._lock:
            self._is_fit = False
            await self._end()

    async def _end(self) -> None:
        orders, child, self._orders, self._child = self._orders, self._child, None, None
        if orders is not None:
            orders.close()
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            await asyncio.to_thread(child.wait)
