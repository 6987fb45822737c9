"""The other fronts as the first process keeps them: started, told what they may answer, asked for their books."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tidemill import records
from tidemill.clients.backoff import Backoff
from tidemill.clock import Clock
from tidemill.errors import DataLoss
from tidemill.inference.fronts import books
from tidemill.inference.fronts.lines import LIMIT, Document, Lines
from tidemill.inference.fronts.picture import Picture

LOG = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds in which a front must say that it has done what it was told; one that does not is ended."""
START = 60.0
"""The same while it starts: it has to import much."""


class Front:
    """One running process."""

    def __init__(self, process: asyncio.subprocess.Process, lines: Lines) -> None:
        self.process = process
        self._lines = lines
        self._numbers = iter(range(1, sys.maxsize))
        self._waiting: dict[int, asyncio.Future[Document]] = {}
        self.report: Document | None = None
        """What it had counted when it was last asked."""

    async def ask(self, document: Mapping[str, Any], patience: float = PATIENCE) -> Document | None:
        """The answer to an order; None when the front has gone, or does not answer in time and is ended."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._lines.send({"order": number, **document})
            return await asyncio.wait_for(answer, patience)
        except TimeoutError:
            LOG.error("a front does not answer; it is ended", extra={"pid": self.process.pid})
            self.end()
        except asyncio.CancelledError:
            if not answer.cancelled():
                raise
        finally:
            del self._waiting[number]
        return None

    async def listen(self) -> None:
        """Take its answers until it goes."""
        try:
            while (document := await self._lines.receive()) is not None:
                waiting = self._waiting.get(document.get("order", 0))
                if waiting is not None and not waiting.done():
                    waiting.set_result(document)
        except DataLoss as error:
            LOG.error("%s", error.message)
            self.end()
        for waiting in self._waiting.values():
            waiting.cancel()

    def leave(self) -> None:
        """Let it finish what it has, and end."""
        self._lines.close()

    def end(self) -> None:
        """End it at once."""
        if self.process.returncode is None:
            self.process.kill()


class Keeper:
    """Keeps `count` fronts running. Belongs to one asyncio loop.

    Args:
        count: how many, the first process not among them.
        start: what a front is told when it begins.
        clock: times the pauses before one is started again.
    """

    def __init__(self, count: int, start: Callable[[], Mapping[str, Any]], clock: Clock) -> None:
        self._count = count
        self._start = start
        self._clock = clock
        self._fronts: dict[int, Front] = {}
        self._picture = Picture()
        self._stopping = False
        self._gone: Document = {"metrics": [], "statistics": {}}

    async def run(self) -> None:
        """Keep them running, for ever."""
        await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))

    async def show(self, picture: Picture) -> None:
        """Tell all fronts; from the return on, none answers with what `picture` does not show."""
        self._picture = picture
        document = {"picture": records.encode(picture).decode()}
        await asyncio.gather(*(front.ask(document) for front in self._fronts.values()))

    async def ask(self, document: Mapping[str, Any]) -> list[Document]:
        """The answers of all fronts that are there."""
        answers = await asyncio.gather(*(front.ask(document) for front in list(self._fronts.values())))
        return [answer for answer in answers if answer is not None]

    async def reports(self) -> list[Document]:
        """What all fronts have counted; of those that have gone, what was known."""

        async def ask(front: Front) -> None:
            # Books may wait: a front that is busy is not ended for that.
            front.report = await front.ask({"report": True}, START) or front.report

        await asyncio.gather(*(ask(front) for front in list(self._fronts.values())))
        return self.known()

    def known(self) -> list[Document]:
        """The same, as it was when they were last asked. Called from any thread."""
        return [front.report for front in list(self._fronts.values()) if front.report is not None] + [self._gone]

    def forget(self, keys: Collection[str]) -> None:
        """Keep of the books of fronts that have gone only those of these versions."""
        statistics = {key: value for key, value in self._gone["statistics"].items() if key in keys}
        self._gone = {**self._gone, "statistics": statistics}

    async def withdraw(self) -> None:
        """Let all say NOT_SERVING, and answer on; one that ends is not started again."""
        self._stopping = True
        await self.ask({"serving": False})

    async def close(self, grace: float) -> None:
        """Let all finish what they have, for `grace` seconds at most."""
        self._stopping = True
        fronts = list(self._fronts.values())
        for front in fronts:
            front.leave()
        if fronts:
            waits = [asyncio.ensure_future(front.process.wait()) for front in fronts]
            await asyncio.wait(waits, timeout=grace)
            for front in fronts:
                front.end()
            await asyncio.gather(*waits)

    async def _keep(self, number: int) -> None:
        backoff = Backoff(0.1, 10.0)
        while not self._stopping:
            began = self._clock.monotonic()
            await self._once(number)
            if self._stopping:
                break
            if self._clock.monotonic() - began > 60:
                backoff.reset()
            LOG.error("a front has ended; it is started again", extra={"front": number})
            await self._clock.sleep(backoff.next())
        await asyncio.Event().wait()

    async def _once(self, number: int) -> None:
        mine, its = socket.socketpair()
        with its:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tidemill.inference.fronts", str(its.fileno())),
                pass_fds=[its.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=mine, limit=LIMIT)
        front = Front(process, Lines(reader, writer))
        listening = asyncio.ensure_future(front.listen())
        try:
            if await front.ask({"start": dict(self._start())}, START) is not None:
                self._fronts[number] = front
                await front.ask({"picture": records.encode(self._picture).decode()})
                # Only now: a front that listens answers, and what it may answer it knows.
                if not self._stopping:
                    await front.ask({"listen": True}, START)
                await process.wait()
        finally:
            if self._fronts.pop(number, None) is not None and front.report is not None:
                self._gone = books.together(self._gone, front.report)
            front.end() if not self._stopping else None
            await process.wait()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            writer.close()
