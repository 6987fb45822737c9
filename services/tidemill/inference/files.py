"""Files that are there whole or not at all, and the format number of a data directory."""

import os
import tempfile
from pathlib import Path

from tidemill.errors import FailedPrecondition

FORMAT = 1
"""Layout of the data directory that this code reads and writes."""


def open_directory(path: Path) -> None:
    """Make the data directory, readable by its owner alone, or check that this code knows its format.

    Raises:
        FailedPrecondition: with reason DATA_VERSION_NEWER, when a later release wrote it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = path / "FORMAT"
    try:
        found = int(number.read_text())
    except FileNotFoundError:
        write_atomically(number, f"{FORMAT}\n".encode())
        return
    except ValueError as error:
        raise FailedPrecondition(f"{number} does not hold a number", reason="DATA_DAMAGED") from error
    if found > FORMAT:
        raise FailedPrecondition(
            f"{path} has format {found}, this release knows {FORMAT}: use a newer release or a new directory",
            reason="DATA_VERSION_NEWER",
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Let `path` hold `data`; whoever reads it meanwhile, or after a crash, finds the old or the new whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
