"""The definitions of groups that outlive the shard, and where their journals lie."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tidemill.datadir import DataDirectory
from tidemill.parameters.definition import Definition
from tidemill.parameters.durability.base import Place

VERSION = 1
"""Of what is written here."""
_DEFINITION = "definition"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """How a definition is written.

    Args:
        encode: makes bytes of it.
        decode: the reverse; raises TidemillError.
    """

    encode: Callable[[Definition], bytes]
    decode: Callable[[bytes], Definition]


class Store:
    """A folder a group, in a data directory that no other process uses.

    Args:
        path: the data directory.
        code: how definitions are written.
        limit: of a journal, see `Place`.
    """

    def __init__(self, path: Path, code: Code, limit: int) -> None:
        self._directory = DataDirectory(path, VERSION)
        self._groups = path / "groups"
        self._code = code
        self._limit = limit

    def open(self) -> None:
        """Lock the directory, and remove what was not made whole. Raises as `DataDirectory.open`."""
        self._directory.open()
        self._groups.mkdir(exist_ok=True, mode=0o700)
        for folder in self._groups.iterdir():
            if not (folder / _DEFINITION).exists():
                shutil.rmtree(folder)

    def close(self) -> None:
        """Give the directory back."""
        self._directory.close()

    def add(self, definition: Definition) -> Place:
        """Keep a definition: on return the group outlives the shard, still without values."""
        place = self._place(definition)
        place.folder.mkdir(mode=0o700)
        temporary = place.folder / "new"
        with temporary.open("wb") as file:
            file.write(self._code.encode(definition))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place.folder / _DEFINITION)
        return place

    def kept(self) -> Iterator[tuple[Definition, Place]]:
        """All that is kept. Raises DataLoss when a definition is damaged."""
        for folder in sorted(self._groups.iterdir()):
            definition = self._code.decode((folder / _DEFINITION).read_bytes())
            yield definition, self._place(definition)

    def _place(self, definition: Definition) -> Place:
        return Place(folder=self._groups / definition.name.rpartition("/")[2], limit=self._limit)
