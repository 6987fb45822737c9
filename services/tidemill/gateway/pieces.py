"""Responses made of several buffers, which are sent as they are: large answers are never joined."""

from collections.abc import Iterator, Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Buffer = bytes | bytearray | memoryview
PIECE = 256 << 10
"""Most bytes handed to the connection at a time, so that a slow client holds no copy of more."""


class Pieces(Response):
    """A response whose body is the concatenation of buffers.

    Args:
        buffers: the body.
        status: HTTP status.
        headers: response headers.
        media_type: content type.
    """

    def __init__(
        self,
        buffers: Sequence[Buffer],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.buffers = tuple(buffers)
        length = sum(len(buffer) for buffer in self.buffers)
        super().__init__(None, status, {**(headers or {}), "content-length": str(length)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, and the body piece by piece, as fast as the client takes it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in _pieces(self.buffers):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _pieces(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    for buffer in buffers:
        if len(buffer) <= PIECE:
            yield buffer
            continue
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]
