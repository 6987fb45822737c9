"""A TCP proxy with faults: cut, hang, delay and slow down what goes through it."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 64 << 10


class TcpProxy:
    """Forwards a free port of 127.0.0.1 to `target`; use as an async context manager.

    Faults hold for connections that stand and for later ones, until `restore`.

    Args:
        target: `host:port` to forward to; nothing need listen there yet.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self._accepting = True
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._delay = 0.0
        self._rate = 0.0
        self.bytes_up = 0
        """Bytes that came from clients, since the start."""
        self.bytes_down = 0
        """Bytes that came from the target, since the start."""
        self.restore()

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        if self._server is None:
            raise RuntimeError("the proxy is not started")
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        """Connections that stand."""
        return len(self._pairs)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        await self._drop()

    async def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._accepting = False
        await self._drop()

    async def reset(self) -> None:
        """Reset all connections once; new ones are served."""
        await self._drop()

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Let bytes from clients (up) and from the target (down) vanish in a queue; connections stay open."""
        for name, stopped in (("up", up), ("down", down)):
            if stopped:
                self._flowing[name].clear()
            else:
                self._flowing[name].set()

    def delay(self, seconds: float) -> None:
        """Hold every piece back by `seconds`, each way."""
        self._delay = seconds

    def rate_limit(self, bytes_per_second: float) -> None:
        """Let at most so many bytes a second through, per connection and direction; 0 is no limit."""
        self._rate = bytes_per_second

    def restore(self) -> None:
        """End all faults; what a black hole held back flows on."""
        self._accepting = True
        self._delay = self._rate = 0.0
        for flowing in self._flowing.values():
            flowing.set()

    async def _drop(self) -> None:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cancel()
        if pairs:
            await asyncio.wait(pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or not self._accepting:
            _abort(writer)
            return
        self._pairs.add(task)
        try:
            await self._pair(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(task)
            _abort(writer)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", reader, target_writer))
                group.create_task(self._pump("down", target_reader, writer))
        except* OSError:
            pass
        finally:
            _abort(target_writer)

    async def _pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            piece = await reader.read(min(CHUNK, max(1, int(self._rate / 20))) if self._rate else CHUNK)
            await self._flowing[way].wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            if not piece:
                with suppress(OSError):
                    writer.write_eof()
                return
            if way == "up":
                self.bytes_up += len(piece)
            else:
                self.bytes_down += len(piece)
            writer.write(piece)
            await writer.drain()
            if self._rate:
                await asyncio.sleep(len(piece) / self._rate)


def _abort(writer: asyncio.StreamWriter) -> None:
    """End the connection at once, with a reset if anything is unsent."""
    writer.transport.abort()
