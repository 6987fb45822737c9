"""What a subcommand is."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Command(ABC):
    """A subcommand of `tidemill`; its name is its file's."""

    help: str
    """What it does, in one line."""
    examples: Sequence[str] = ()
    """Command lines that the help shows."""

    @abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags and operands."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> int:
        """Do it; the exit status. Raises `TidemillError` or `OSError`: one line on standard error and status 1."""
