"""A version whose files can be read: what every source of models gives to the loader."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidemill.inference.configuration import Configuration
from tidemill.inference.desired import Desired, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One version, not loaded yet.

    Args:
        runtime: name of its runtime.
        sizes: bytes of each of its files, by path.
        read: the bytes of files, by path; raises `TidemillError` or OSError.
        configuration: how it is run; None when there is nothing but its files.
        directory: its own directory, for runtimes that need files as files; None when there is none.
        trusted: whether its files may hold code.
    """

    runtime: str
    sizes: Mapping[str, int]
    read: Callable[[Sequence[str]], Awaitable[dict[str, bytes]]]
    configuration: Configuration | None = None
    directory: Path | None = None
    trusted: bool = False


class Source(Protocol):
    """Where models come from."""

    async def open(self, version: Version) -> Opened:
        """A version, ready to be read.

        Raises:
            Invalid: it is not what it should be.
            TidemillError, OSError: it cannot be had now.
        """

    async def tidy(self, desired: Desired) -> None:
        """Forget what neither `desired` nor a load that has begun since needs."""
