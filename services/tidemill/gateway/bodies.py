"""Request bodies: bounded in size and depth before anything is parsed, and bounded in memory over all requests."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from tidemill import errors
from tidemill.gateway.compression import Inflater, encoding_of
from tidemill.gateway.problems import Refused

MAX_DEPTH = 32
"""Deepest nesting of JSON that is parsed."""
MAX_CONTAINERS = 1 << 20
"""Most objects and arrays in a JSON document: each costs far more memory than its two bytes of text."""
MAX_MEMBERS = 1 << 18
"""Most objects and members of objects in a JSON document, together: an object costs more than an array."""
IDLE_SECONDS = 60.0
"""Longest silence inside of a body."""

_OTHERS = bytes(set(range(256)) - set(b'"[]{}:'))
_SQUARE = bytes.maketrans(b"{}", b"[]")


class Bodies:
    """Reads bodies.

    Args:
        limit: largest body in bytes.
        buffered: largest sum of the bodies in memory at a time, in bytes.
    """

    def __init__(self, limit: int, buffered: int) -> None:
        self.limit = limit
        self._buffered = buffered
        self._held = 0

    @asynccontextmanager
    async def received(self, request: Request, limit: int | None = None) -> AsyncIterator[bytearray]:
        """The whole body, inflated, which counts as held in memory until the block ends.

        A block that has made something else of it lets go of it, and so its memory is free before the block ends.

        Raises:
            Refused: with status 413, when it is larger than `limit` (default: that of all bodies), compressed or
                inflated; with 415, when it is compressed in a way that is not understood.
            Invalid: it is not compressed as it says.
            Unavailable: other bodies fill the memory there is for them.
            Cancelled: the caller hung up.
        """
        most = self.limit if limit is None else limit
        if int(request.headers.get("content-length", "0")) > most:
            raise _too_large(most)
        encoding = encoding_of(request)
        inflater = Inflater(encoding) if encoding else None
        held = [bytearray()]  # a list, so that the block has the only reference
        arrived = size = 0
        try:
            async for chunk in incoming(request):
                arrived += len(chunk)
                if arrived > most:
                    raise _too_large(most)
                for piece in [chunk] if inflater is None else inflater.feed(chunk):
                    size += len(piece)
                    self._held += len(piece)
                    if size > most:
                        raise _too_large(most)
                    if self._held > self._buffered:
                        raise errors.Unavailable("too many large requests at a time", reason="BUSY", retry_after=1)
                    held[0] += piece
                    if inflater is not None:
                        await asyncio.sleep(0)  # inflating is work: others have their turn
            if inflater is not None:
                inflater.end()
            yield held.pop()
        finally:
            self._held -= size


async def incoming(request: Request) -> AsyncIterator[bytes]:
    """The body's bytes as they arrive.

    Raises:
        Cancelled: the caller hung up.
        DeadlineExceeded: nothing came for `IDLE_SECONDS`.
    """
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(chunks, b"")
        except ClientDisconnect as error:
            raise errors.Cancelled("the caller hung up", reason="HUNG_UP") from error
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"no bytes came for {IDLE_SECONDS:g} s", reason="IDLE") from error
        if not chunk:  # Starlette ends with an empty one
            await chunks.aclose()
            return
        yield chunk


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body must not be larger than {limit} bytes", reason="BODY_TOO_LARGE")


def parse(
    text: bytes | bytearray | memoryview,
    *,
    nonfinite: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON document in UTF-8.

    Args:
        text: the document.
        nonfinite: whether the tokens NaN, Infinity and -Infinity, which are not JSON, are understood.
        pairs: makes an object of its members; without it the last of those with the same name counts.

    Raises:
        Invalid: with reason INVALID_JSON: it is no JSON, or nested too deep, or of too many parts.
    """
    check_depth(text)
    try:
        constant = None if nonfinite else _refuse_constant
        return json.loads(str(text, "utf-8"), parse_constant=constant, object_pairs_hook=pairs)
    except UnicodeDecodeError as error:
        raise errors.Invalid("the body is not UTF-8", reason="INVALID_JSON") from error
    except json.JSONDecodeError as error:
        raise errors.Invalid(
            f"the body is not JSON: {error.msg} at character {error.pos}", reason="INVALID_JSON"
        ) from error
    except ValueError as error:  # Python bounds the digits of an integer
        raise errors.Invalid("the body holds a number of too many digits", reason="INVALID_JSON") from error


def _refuse_constant(token: str) -> NoReturn:
    raise errors.Invalid(f"{token} is not JSON", reason="INVALID_JSON")


def check_depth(text: bytes | bytearray | memoryview) -> None:
    """Return when `text` can be parsed without deep recursion: in linear time, and without parsing it.

    Once strings and all but brackets and colons are gone, objects and members are counted; then each pass that takes
    away every `[]` takes away exactly one level.

    Raises:
        Invalid: with reason INVALID_JSON.
    """
    data = bytes(text) if isinstance(text, memoryview) else text
    opened = data.count(b"[") + data.count(b"{")
    if opened <= MAX_DEPTH and data.count(b":") <= MAX_MEMBERS - MAX_DEPTH:
        return
    if opened > MAX_CONTAINERS:
        raise errors.Invalid(f"the body has more than {MAX_CONTAINERS} opening brackets", reason="INVALID_JSON")
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(data.translate(None, _OTHERS).replace(b'""', b"").split(b'"')[::2])
    if outside.count(b":") + outside.count(b"{") > MAX_MEMBERS:
        raise errors.Invalid(f"the body has more than {MAX_MEMBERS} objects and members", reason="INVALID_JSON")
    left = outside.translate(_SQUARE, b":")
    for _ in range(MAX_DEPTH):
        left = left.replace(b"[]", b"")
        if not left:
            return
    raise errors.Invalid(
        f"the body is nested deeper than {MAX_DEPTH}, or its brackets do not match", reason="INVALID_JSON"
    )
