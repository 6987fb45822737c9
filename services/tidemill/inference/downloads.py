"""The artifact service as the loader sees it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tidemill.clients.artifacts import ArtifactsClient
from tidemill.errors import Unavailable
from tidemill.inference import convert
from tidemill.inference.manifests import File

STALL = 30.0
"""Seconds without a byte after which a download counts as broken."""


class Downloads:
    """Reads artifacts through a client."""

    def __init__(self, client: ArtifactsClient) -> None:
        self._client = client

    async def files(self, artifact: str) -> tuple[File, ...]:
        """The files that the artifact with this digest lists. Raises `TidemillError`."""
        return convert.to_files(await self._client.get_artifact(artifact))

    async def read(self, sha256: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob, in order. Raises `TidemillError`."""
        async with aclosing(self._client.read(sha256)) as pieces:
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), STALL)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise Unavailable("the artifact service stalls", reason="STALLED") from error
                yield piece
