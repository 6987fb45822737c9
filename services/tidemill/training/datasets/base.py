"""What a reader of one format must do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tidemill.errors import Invalid
from tidemill.training.samples import Dataset, bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to read a data set, and how much of it."""

    builtin: str = ""
    """Name of a built-in data set."""
    label_column: str = "label"
    """Column of a table that holds the class."""
    text_column: str = ""
    """Column of a table that holds text; empty = all others are numbers."""
    limit: int = 2 << 30
    """Most bytes that the samples may have, unpacked."""


class Reader(ABC):
    """Reads one format.

    Uploads are data of strangers: nothing in them is executed, declared sizes are checked before anything is
    allocated, and whatever is wrong is `Invalid`.
    """

    has_columns: ClassVar[bool] = False
    """Whether samples are rows of a table with named columns; formats without them take no names of columns."""

    @classmethod
    @abstractmethod
    def accepts(cls, names: Sequence[str]) -> bool:
        """Whether an artifact with files of these names looks like this format."""

    @classmethod
    @abstractmethod
    def read(cls, files: Mapping[str, Path], options: Options) -> Dataset:
        """The data set in `files` (name in the artifact -> where it lies).

        Raises:
            Invalid: the content is not of this format, or no data set; reason BAD_DATASET.
        """


def only(files: Mapping[str, Path], suffix: str) -> Path:
    """The one file whose name ends with `suffix`.

    Raises:
        Invalid: there is none, or several.
    """
    found = [path for name, path in files.items() if name.lower().endswith(suffix)]
    if len(found) != 1:
        raise bad(f"there must be one file *{suffix}, not {len(found)}")
    return found[0]


def too_large(what: str, size: int, limit: int) -> Invalid:
    """An `Invalid` about a data set over the limit."""
    return bad(f"{what} has {size} bytes unpacked; at most {limit} are allowed")
