"""Sends and fetches a file through the artifact client, and says how much memory that took: run as a process.

`python -m tests.support.transfer_memory ADDRESS SMALL LARGE TARGET` moves the file SMALL, then LARGE, and prints by how
many bytes the second grew the process's peak.
"""

import asyncio
import sys
from pathlib import Path

from tidemill.clients.artifacts import ArtifactsClient


def peak(pid: int | str = "self") -> int:
    """The largest resident memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no memory")


async def _move(address: str, source: Path, target: Path) -> None:
    async with ArtifactsClient(address) as client:
        blob = await client.upload(source)
        await client.download_to(blob.sha256, target)


async def _main(address: str, small: str, large: str, target: str) -> None:
    await _move(address, Path(small), Path(target))
    before = peak()
    await _move(address, Path(large), Path(target))
    print(peak() - before)  # noqa: T201 the answer


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
