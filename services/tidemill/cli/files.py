"""Files named on the command line."""

from collections.abc import Iterable
from pathlib import Path

from tidemill.errors import Invalid


def by_name(given: Iterable[str]) -> dict[str, Path]:
    """Existing files by their names without directories, as artifacts list them.

    Raises:
        Invalid: one is no file, or two have the same name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, given):
        if not path.is_file():
            raise Invalid(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}")
        if path.name in found:
            raise Invalid(f"{found[path.name]} and {path} have the same name")
        found[path.name] = path
    return found
