"""What the first process and another front say to each other: JSON documents, one a line, over a pair of sockets."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from tidemill.errors import DataLoss

LIMIT = 64 << 20
"""Longest line in bytes."""
Document = dict[str, Any]


class Lines:
    """One end. `receive` is called by one task at a time; `send` by any."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, document: Mapping[str, Any]) -> None:
        """Send a document; one that the other end cannot get any more is lost."""
        self._writer.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def receive(self) -> Document | None:
        """The next document; None when the other end has gone.

        Raises:
            DataLoss: what came is not one.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError as error:
            raise DataLoss("a front sent a line that is too long", reason="FRONT_BROKEN") from error
        if not line.endswith(b"\n"):
            return None
        document: Document = json.loads(line)
        return document

    def close(self) -> None:
        """Let the other end see that this one has gone."""
        self._writer.close()
