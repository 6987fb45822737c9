"""What a subcommand is."""

import argparse
from abc import ABC, abstractmethod


class Command(ABC):
    """A subcommand of `tidemill`; its name is its file's."""

    help: str
    """What it does, in one line."""

    @abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags and operands."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> int:
        """Do it; the exit status. Raises `TidemillError`, which becomes one line on standard error and status 1."""
