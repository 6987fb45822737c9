"""Model files as the first process has loaded and checked them, for the fronts to load the very same."""

import shutil
from asyncio import to_thread
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.errors import Unavailable
from tidemill.inference.desired import Desired, Version
from tidemill.inference.opened import Opened


class Spool:
    """Keeps the files of loaded versions in a private directory.

    Args:
        directory: which nobody else can read; made when it is not there.
        largest: most bytes of a version that is kept.
    """

    def __init__(self, directory: Path, largest: int) -> None:
        self._directory = directory
        self.largest = largest
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the files of a version lie."""
        return self._directory / key

    def keep(self, key: str, files: Mapping[str, bytes]) -> None:
        """Keep files by path. Raises OSError."""
        for path, data in files.items():
            target = self.path(key) / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.write_bytes(data)

    def forget(self, key: str) -> None:
        """Remove what is kept of a version."""
        shutil.rmtree(self.path(key), ignore_errors=True)


class SpoolSource:
    """Opens versions whose directory is in the spool."""

    async def open(self, version: Version) -> Opened:
        """The version.

        Raises:
            Unavailable: it is not there any more.
        """
        directory = version.directory
        if directory is None or not directory.is_dir():
            raise Unavailable("the version has gone meanwhile", reason="VERSION_GONE")
        sizes = {
            str(path.relative_to(directory)): path.stat().st_size for path in directory.rglob("*") if path.is_file()
        }

        async def read(paths: Sequence[str]) -> dict[str, bytes]:
            return {path: await to_thread((directory / path).read_bytes) for path in paths}

        # The first process has judged it, and serves it.
        return Opened(runtime=version.format, sizes=sizes, read=read, configuration=version.configuration, trusted=True)

    async def tidy(self, desired: Desired) -> None:
        """Nothing to do: the first process owns the spool."""
