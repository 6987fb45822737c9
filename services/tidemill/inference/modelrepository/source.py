"""Versions of an operator's repository: their files are read once, when they are loaded."""

from asyncio import to_thread
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidemill.errors import Internal
from tidemill.inference.desired import Desired, Version
from tidemill.inference.modelconfig.filenames import presented
from tidemill.inference.modelrepository import folders
from tidemill.inference.opened import Opened


class FolderSource:
    """Opens versions of the repository at `root`; what lies there is trusted, what came in a request is not.

    Args:
        root: the repository, resolved.
        largest: most bytes that are read of a file.
    """

    def __init__(self, root: Path, largest: int) -> None:
        self._root = root
        self._largest = largest

    async def open(self, version: Version) -> Opened:
        """The version. Raises `TidemillError`."""
        if version.configuration is None:
            raise Internal("a version of a repository has a configuration", reason="NO_CONFIGURATION")
        sizes = await to_thread(self._sizes, version)
        paths = presented(version.configuration, sizes)

        async def read(wanted: Sequence[str]) -> dict[str, bytes]:
            return await to_thread(lambda: {path: self._read(version, paths[path]) for path in wanted})

        return Opened(
            runtime=version.format,
            sizes={path: sizes[real] for path, real in paths.items()},
            read=read,
            configuration=version.configuration,
            directory=version.directory,
            trusted=version.directory is not None,
        )

    async def tidy(self, desired: Desired) -> None:
        """Nothing: what is read is not kept."""

    def _sizes(self, version: Version) -> Mapping[str, int]:
        if version.directory is None:
            return {path: len(data) for path, data in version.overrides.items()}
        return {path: entry.size for path, entry in folders.listing(self._root, version.directory).items()}

    def _read(self, version: Version, path: str) -> bytes:
        if version.directory is None:
            return version.overrides[path]
        return folders.read(self._root, version.directory, path, self._largest)
