"""The command line's grammar: an `argparse` that says what is wrong in one line."""

import argparse
from collections.abc import Callable, Generator
from typing import Any, NoReturn


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lists subcommands like flags: argparse indents them more, and then has no room for long names."""

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        yield from getattr(action, "_choices_actions", ())


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line on standard error with status 2, and which knows no abbreviated flags.

    The parsed options hold the innermost parser that took part as `parser`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **options})
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def subcommands(parser: argparse.ArgumentParser, default: str) -> Callable[[str, str], argparse.ArgumentParser]:
    """Give `parser` actions, stored as `action`; what is returned adds one, by name and help.

    Args:
        parser: of a command.
        default: the action when none is given.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    parser.set_defaults(action=default)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        more = " (the default)" if name == default else ""
        return actions.add_parser(name, help=help + more, description=sentence(help))

    return add


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
