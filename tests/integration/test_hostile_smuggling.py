"""Bytes that two readers of HTTP could take for different requests: refused, or one request for everybody."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import h11
import pytest

from tests.support.gateway import Gateway, ScriptedTraining, serve_gateway, serve_training

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
LAST = b"GET /api/v1/jobs/last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
HIDDEN = b"GET /api/v1/jobs/hidden HTTP/1.1\r\nX: "
"""What is smuggled; it swallows the first line of what follows, and takes its host."""


def post(*headers: bytes, body: bytes = b"", line: bytes = b"POST /api/v1/jobs HTTP/1.1") -> bytes:
    """A request with these header lines."""
    return b"\r\n".join([line, HOST[:-2], JSON[:-2], *headers, b"", b""]) + body


CHUNKED = b"Transfer-Encoding: chunked"
REFUSED: dict[str, bytes] = {
    "a length and chunks": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "chunks and a length": post(CHUNKED, b"Content-Length: 6", body=b"0\r\n\r\n" + HIDDEN),
    "chunks and a length of all": post(CHUNKED, b"Content-Length: %d" % (5 + len(HIDDEN)), body=b"0\r\n\r\n" + HIDDEN),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 60", body=b"{}" + HIDDEN),
    "two lengths in one line": post(b"Content-Length: 2, 60", body=b"{}" + HIDDEN),
    "a length with a sign": post(b"Content-Length: +2", body=b"{}" + HIDDEN),
    "a negative length": post(b"Content-Length: -1", body=b"{}" + HIDDEN),
    "a hexadecimal length": post(b"Content-Length: 0x2", body=b"{}" + HIDDEN),
    "a length with a line between": post(b"Content-Length: 1_0", body=b"{}" + HIDDEN),
    "a length in other digits": post("Content-Length: ２".encode(), body=b"{}" + HIDDEN),
    "an endless length": post(b"Content-Length: " + b"9" * 100, body=b"{}" + HIDDEN),
    "no length": post(b"Content-Length: ", body=b"{}" + HIDDEN),
    "a space before the colon": post(b"Content-Length : 2", body=b"{}" + HIDDEN),
    "a space before the colon of chunks": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a tab before the colon": post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "chunks twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + HIDDEN),
    "chunks in two lines": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "chunks, then as it is": post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + HIDDEN),
    "another coding first": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a coding with a parameter": post(b"Transfer-Encoding: chunked;a=b", body=b"0\r\n\r\n" + HIDDEN),
    "a vertical tab in the coding": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + HIDDEN),
    "a coding in quotes": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n" + HIDDEN),
    "no coding": post(b"Transfer-Encoding: ", body=b"0\r\n\r\n" + HIDDEN),
    "a null in a header": post(b"A: b\0c", b"Content-Length: 2", body=b"{}" + HIDDEN),
    "a carriage return in a header": post(b"A: b\rContent-Length: 60", b"Content-Length: 2", body=b"{}" + HIDDEN),
    "a size with a sign": post(CHUNKED, body=b"+2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a size with 0x": post(CHUNKED, body=b"0x2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a size with a line between": post(CHUNKED, body=b"0_2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a negative size": post(CHUNKED, body=b"-2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a size of many digits": post(CHUNKED, body=b"0" * 100 + b"2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "no size": post(CHUNKED, body=b"\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a space before a size": post(CHUNKED, body=b" 2\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a chunk that is longer than it says": post(CHUNKED, body=b"2\r\n{}XX\r\n0\r\n\r\n" + HIDDEN),
    "a chunk without an end": post(CHUNKED, body=b"2\r\n{}0\r\n\r\n" + HIDDEN),
    "a line feed in a chunk's extension": post(CHUNKED, body=b"2;a\nb\r\n{}\r\n0\r\n\r\n" + HIDDEN),
    "chunks of an old request": post(CHUNKED, body=b"0\r\n\r\n" + HIDDEN, line=b"POST /api/v1/jobs HTTP/1.0"),
    "no version": b"GET /api/v1/jobs/hidden\r\n\r\n",
    "another version": b"GET /api/v1/jobs/hidden HTTP/2.0\r\n" + HOST + b"\r\n",
    "a version in small letters": b"GET /api/v1/jobs/hidden http/1.1\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  /api/v1/jobs/hidden HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab for a space": b"GET\t/api/v1/jobs/hidden\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "a line with a null": b"GET /api/v1/jobs/hidden\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a carriage return in the line": b"GET /api/v1/jobs/a\rb HTTP/1.1\r\n" + HOST + b"\r\n",
    "a first header that goes on": b"GET /api/v1/jobs/hidden HTTP/1.1\r\n a: b\r\n" + HOST + b"\r\n",
    "two hosts": b"GET /api/v1/jobs/hidden HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
}
"""Each is refused, and the connection with it: whatever follows is not read."""

WHOLE: dict[str, tuple[bytes, set[int]]] = {
    "an absolute address": (
        b"GET http://evil.example/api/v1/jobs/hidden HTTP/1.1\r\n" + HOST + b"\r\n",
        {400, 404, 421},
    ),
    "an authority": (b"GET localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 421}),
    "a tunnel": (b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405, 421}),
    "a tunnel to a path": (b"CONNECT /api/v1/jobs/hidden HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "a trace": (b"TRACE /api/v1/jobs/hidden HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "another protocol": (b"PRI * HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "an upgrade": (
        b"GET /api/v1/jobs/none/at/all HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        {400, 404},
    ),
    "the same length twice": (post(b"Content-Length: 2", b"Content-Length: 2", body=b"{]"), {400}),
    "a body of a GET": (
        b"GET /api/v1/jobs/none/at/all HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        {400, 404},
    ),
    "a trailer that is a header": (post(CHUNKED, body=b"2\r\n{]\r\n0\r\nContent-Length: 60\r\n\r\n"), {400}),
    "a coding in another case": (post(b"transfer-encoding: Chunked", body=b"2\r\n{]\r\n0\r\n\r\n"), {400}),
    "an extension of a chunk": (post(CHUNKED, body=b"2;a=b\r\n{]\r\n0\r\n\r\n"), {400}),
    "a host that goes on": (
        b"GET /api/v1/jobs/hidden HTTP/1.1\r\nHost: localhost\r\n .evil.example\r\n\r\n",
        {400, 421},
    ),
    "a length that goes on": (post(b"Content-Length:", b" 2", body=b"{]"), {400}),
    "lines that end in a line feed": (post(b"Content-Length: 2", body=b"{]").replace(b"\r\n", b"\n"), {400}),
}
"""Each is one request, with one of these statuses: the connection goes on behind it, or is closed."""


@dataclass
class World:
    gateway: Gateway
    training: ScriptedTraining

    async def statuses(self, sent: bytes) -> list[int]:
        """Of all answers on one connection, until the gateway closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.ports["management"])
        try:
            async with asyncio.timeout(20):
                writer.write(sent)
                data = await self._read(reader)
        finally:
            writer.close()
        return statuses(data)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        data = b""
        try:
            while more := await reader.read(1 << 16):
                data += more
        except ConnectionResetError:
            pass
        return data

    def asked(self) -> list[str]:
        """Names of the jobs that were asked for, and "new" for one to be made."""
        return [getattr(request, "name", "new") for request in self.training.requests]


def statuses(data: bytes) -> list[int]:
    """Of all answers in what a server said."""
    found = []
    while data:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        client.receive_data(b"")  # an answer may end with the connection
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA, data
            if isinstance(event, h11.Response):
                found.append(event.status_code)
        data = client.trailing_data[0]
    return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with serve_training() as (training, address), serve_gateway(training_address=address) as gateway:
        yield World(gateway, training)


async def test_requests_in_a_row_are_answered_in_a_row(world: World) -> None:
    """Else nothing that follows a request would be seen below."""
    first = LAST.replace(b"last", b"first").replace(b"Connection: close\r\n", b"")
    assert await world.statuses(first + LAST) == [200, 200]
    assert world.asked() == ["jobs/first", "jobs/last"]


async def test_what_two_readers_could_read_differently_is_refused(world: World) -> None:
    bad = {}
    for name, sent in REFUSED.items():
        world.training.reset()
        found = await world.statuses(sent + LAST)
        if found not in ([400], [421], [505]) or world.asked():
            bad[name] = found, world.asked()
    assert not bad


async def test_one_request_has_one_answer(world: World) -> None:
    bad = {}
    for name, (sent, allowed) in WHOLE.items():
        world.training.reset()
        found = await world.statuses(sent + LAST)
        if found[0] not in allowed or found[1:] not in ([], [200]) or world.asked() not in ([], ["jobs/last"]):
            bad[name] = found, world.asked()
    assert not bad


async def test_a_chunk_without_end_takes_all_that_follows(world: World) -> None:
    """Its size is one that would wrap, were it counted in 64 bits."""
    sent = post(CHUNKED, body=b"1" + b"0" * 16 + b"2\r\n{}\r\n0\r\n\r\n" + HIDDEN) + LAST
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.ports["management"])
    async with asyncio.timeout(20):
        writer.write(sent)
        writer.write_eof()
        assert len(statuses(await world._read(reader))) <= 1
    writer.close()
    assert world.asked() == []
