"""The training service's end of its bridge to Ray."""

import asyncio
import json
import logging
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import tidemill
from tidemill import config
from tidemill.errors import AlreadyExists, FailedPrecondition, TidemillError, Unavailable
from tidemill.training.launchers.local import INHERITED

LOG = logging.getLogger(__name__)
PACKAGE = tuple(str(portion) for portion in tidemill.__path__)
"""The directories that make up our package."""
_PROGRAM = (
    "import sys, types; p = types.ModuleType('tidemill'); p.__path__ = sys.argv[1:]; sys.modules['tidemill'] = p; "
    "from tidemill.training.launchers._ray.bridge import main; main()"
)
"""Our package and nothing else beside it: the bridge may run in another Python environment."""
_LONGEST = 4 << 20
_LAST = 20

Part = Callable[[dict[str, Any]], None]


class Lost(Exception):
    """The bridge, or the cluster behind it, is gone; the text says what is known."""


class Connection:
    """A bridge that runs. `open` it; it ends with `close`, or by itself."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = 0
        self._answers: dict[int, tuple[asyncio.Future[Any], Part | None]] = {}
        self._said: deque[str] = deque(maxlen=_LAST)
        self._listening = asyncio.ensure_future(self._listen())
        self._errors = asyncio.ensure_future(self._note())
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, python: str, settings: Mapping[str, Any], seconds: float) -> "Connection":
        """A bridge that has joined the cluster.

        Raises:
            FailedPrecondition: reason LAUNCH_FAILED, when Ray is not installed.
            Unavailable: reason LAUNCH_FAILED, when the cluster is not reached within so many seconds.
        """
        own = config.environ()
        environment = {name: own[name] for name in own if name in INHERITED or name.startswith(("LC_", "RAY_"))}
        environment.pop("PYTHONPATH", None)
        try:
            process = await asyncio.create_subprocess_exec(
                python or sys.executable,
                *("-c", _PROGRAM, *PACKAGE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
                limit=_LONGEST,
                start_new_session=True,
            )
        except OSError as error:
            raise FailedPrecondition(
                f"the Python for Ray cannot be started: {error.strerror}", reason="LAUNCH_FAILED"
            ) from error
        connection = cls(process)
        connection._send({**settings, "package": PACKAGE, "own_python": sys.executable})
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(connection._ready)
        except TimeoutError as error:
            raise Unavailable(
                f"the Ray cluster at {settings['address']} was not reached in {seconds:g} s", reason="LAUNCH_FAILED"
            ) from error
        except Lost as lost:
            raise connection._failure(settings["address"], str(lost)) from lost
        finally:
            if not connection._ready.done() or connection._ready.exception():
                await connection.close()
        return connection

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return not self._listening.done()

    async def call(self, op: str, part: Part | None = None, **arguments: Any) -> Any:
        """Have a request carried out; `part` takes what comes before its result. Cancelling breaks it off.

        Raises:
                FailedPrecondition, Unavailable, AlreadyExists: it was refused.
            Lost: the bridge has ended.
        """
        if not self.is_open:
            raise Lost(self._ending())
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer, part
        self._send({"id": number, "op": op, **arguments})
        try:
            await self._drain()
            return await answer
        except asyncio.CancelledError:
            self._send(number)
            raise
        finally:
            self._answers.pop(number, None)

    async def close(self) -> None:
        """End the bridge; the workers go on."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._listening, self._errors)
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            transport.close()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, RuntimeError):  # that it has ended is noticed by whoever listens
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _drain(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            await self._process.stdin.drain()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "ready" in message:
                self._ready.set_result(None)
            elif "failed" in message:
                self._said.append(message["failed"])
            else:
                self._deliver(message)
        for answer, _ in self._answers.values():
            if not answer.done():
                answer.set_exception(Lost(self._ending()))
        if not self._ready.done():
            await self._errors
            self._ready.set_exception(Lost(self._ending()))

    def _deliver(self, message: dict[str, Any]) -> None:
        answer, part = self._answers.get(message["id"], (None, None))
        if answer is None or answer.done():
            return
        if "part" in message:
            if part is not None:
                part(message["part"])
        elif "error" in message:
            answer.set_exception(_error(message["kind"], message["error"]))
        else:
            answer.set_result(message["result"])

    async def _note(self) -> None:
        assert self._process.stderr is not None
        with suppress(ValueError):  # a line beyond all measure: it is only for people
            while line := await self._process.stderr.readline():
                text = line.decode("utf-8", "replace").rstrip()
                LOG.debug("Ray: %s", text)
                self._said.append(text[:400])

    def _ending(self) -> str:
        return self._said[-1] if self._said else "the bridge to Ray has ended"

    def _failure(self, address: str, text: str) -> FailedPrecondition | Unavailable:
        if "No module named 'ray'" in text:
            return FailedPrecondition(
                "the launcher 'ray' needs the package 'ray' (install tidemill[ray])", reason="LAUNCH_FAILED"
            )
        return Unavailable(f"the Ray cluster at {address} is out of reach: {text}", reason="LAUNCH_FAILED")


def _error(kind: str, text: str) -> TidemillError:
    if kind == "USED":
        return AlreadyExists(text, reason="HANDLE_USED")
    return (FailedPrecondition if kind == "NEVER" else Unavailable)(text, reason="LAUNCH_FAILED")
