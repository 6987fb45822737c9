"""`tidemill`: run the platform on this machine, and use it from the command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from tidemill import plugins
from tidemill.cli import commands
from tidemill.cli.commands.base import Command
from tidemill.cli.parser import Parser, sentence
from tidemill.errors import TidemillError

DESCRIPTION = "Run the platform on this machine, and use it from the command line."
EPILOG = """`tidemill COMMAND --help` says more about a command.
Exit status: 0 done, 1 failed, 2 wrong usage, 130 ended by Ctrl-C."""
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that `arguments` (default: the command line) name; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"tidemill {metadata.version('tidemill')}")
        return 0
    parser, known = _grammar(given[0] if given else "")
    if not given:
        parser.print_help(sys.stderr)
        return 2
    try:
        options, rest = parser.parse_known_args(given)
        if rest:
            options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        status = known[options.command].run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except TidemillError as error:
        return _failed(error.message)
    except OSError as error:
        said = error.strerror or str(error)
        return _failed(f"{error.filename}: {said}" if error.filename else said)
    except KeyboardInterrupt:
        return INTERRUPTED


def _grammar(wanted: str) -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    names = plugins.names(commands)
    parser = Parser(prog="tidemill", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version and end")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    found: dict[str, Command] = {}
    # Only the command in use is imported: `up` must stay free of grpc, and every other quick.
    for name in [wanted] if wanted in names else names:
        command = found[name] = plugins.load(commands, name, Command)()
        examples = "\n".join(["examples:", *(f"  {line}" for line in command.examples)]) if command.examples else None
        command.arguments(
            subparsers.add_parser(name, help=command.help, description=sentence(command.help), epilog=examples)
        )
    return parser, found


def _failed(message: str) -> int:
    # Never more than a line, whatever a service or a library said.
    print(f"tidemill: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
