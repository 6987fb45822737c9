"""gzip and deflate: requests inflated in small steps, answers compressed when that pays."""

import asyncio
import zlib
from collections.abc import Iterator, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.gateway.pieces import Buffer, Pieces
from tidemill.gateway.problems import Refused

STEP = 256 << 10
"""Most bytes inflated at a time."""
MINIMUM = 4 << 10
"""Smallest answer in bytes that is compressed."""
SAMPLE = 64 << 10
"""Bytes of an answer that are tried first."""
WORTH = 0.9
"""Compressed size by size, of the sample, up to which compressing pays."""
THREAD = 256 << 10
"""Size in bytes from which on answers are compressed beside the event loop."""
LEVEL = 1
_WINDOWS: Mapping[str, int] = {"gzip": 31, "deflate": 15}
"""zlib's name for each format: "deflate" means zlib's own."""


def encoding_of(request: Request) -> str:
    """How the body is compressed, "" for not at all.

    Raises:
        Refused: with status 415: in a way that is not understood, or more than once.
    """
    value = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if value in ("", "identity"):
        return ""
    if value not in _WINDOWS:
        raise Refused(
            415,
            "bodies may be compressed once, with gzip or deflate",
            reason="UNSUPPORTED_ENCODING",
            headers={"Accept-Encoding": "gzip, deflate, identity"},
        )
    return value


class Inflater:
    """Inflates one body.

    Args:
        encoding: `gzip` or `deflate`.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_WINDOWS[encoding])

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes of the body inflate to, at most `STEP` bytes at a time.

        Raises:
            Invalid: they are not of the format.
        """
        full = False
        while chunk or full:
            if self._stream.eof:
                raise self._broken("bytes follow its end")
            try:
                piece = self._stream.decompress(chunk, STEP)
            except zlib.error as error:
                raise self._broken("its data are damaged") from error
            full = len(piece) == STEP and not self._stream.eof
            chunk = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            yield piece

    def end(self) -> None:
        """Return when the body was complete. Raises `Invalid` otherwise."""
        if not self._stream.eof:
            raise self._broken("its end is missing")

    def _broken(self, problem: str) -> errors.Invalid:
        return errors.Invalid(f"the body is not {self._encoding}: {problem}", reason="INVALID_ENCODING")


def accepted(header: str) -> str:
    """The format that an `Accept-Encoding` header prefers among those there are, "" for none."""
    weights: dict[str, float] = {}
    for part in header.lower().split(",")[:16]:
        name, *parameters = (word.strip() for word in part.split(";"))
        weights[name] = next((_weight(word) for word in parameters if word.startswith("q=")), 1.0)
    best = max(_WINDOWS, key=lambda name: weights.get(name, weights.get("*", 0.0)))
    weight = weights.get(best, weights.get("*", 0.0))
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weight(word: str) -> float:
    try:
        return float(word.removeprefix("q="))
    except ValueError:
        return 0.0


async def encoded(request: Request, response: Response) -> Response:
    """`response`, compressed if the request accepts it, and it gets smaller by that."""
    if response.status_code != 200 or (type(response) is not Pieces and not hasattr(response, "body")):
        return response
    buffers: Sequence[Buffer] = response.buffers if isinstance(response, Pieces) else [response.body]
    size = sum(len(buffer) for buffer in buffers)
    if size < MINIMUM:
        return response
    response.headers.add_vary_header("Accept-Encoding")
    encoding = accepted(",".join(request.headers.getlist("accept-encoding")))
    if not encoding or not _pays(buffers, encoding):
        return response
    if size < THREAD:
        made = _deflated(buffers, encoding)
    else:
        made = await asyncio.to_thread(_deflated, buffers, encoding)
    headers = {**response.headers, "content-encoding": encoding}
    return Pieces(made, response.status_code, headers)


def _pays(buffers: Sequence[Buffer], encoding: str) -> bool:
    """Whether the greatest part of an answer, by its beginning, gets smaller."""
    sample = bytes(memoryview(max(buffers, key=len))[:SAMPLE])
    return sum(map(len, _deflated([sample], encoding))) <= WORTH * len(sample)


def _deflated(buffers: Sequence[Buffer], encoding: str) -> list[bytes]:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOWS[encoding])
    return [part for part in (*map(stream.compress, buffers), stream.flush()) if part]
