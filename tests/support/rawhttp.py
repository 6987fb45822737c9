"""HTTP as bytes: for requests that no client would send."""

import asyncio


async def exchange(port: int, sent: bytes, *, timeout: float = 20.0) -> tuple[int, bytes]:
    """Status and all further bytes of the first answer to `sent` on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(timeout):
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            status, _, rest = head.partition(b"\r\n")
            length = next(
                (int(line[15:]) for line in rest.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            return int(status.split(b" ")[1]), await reader.readexactly(length)
    finally:
        writer.close()
