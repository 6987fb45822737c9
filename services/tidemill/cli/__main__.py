"""`tidemill`: run the platform on this machine, and use it from the command line."""

import argparse
import os
import sys
from collections.abc import Sequence

from tidemill import plugins
from tidemill.cli import commands
from tidemill.cli.commands.base import Command
from tidemill.errors import TidemillError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that `arguments` (default: the command line) name; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = plugins.names(commands)
    # Only the command in use is imported: `up` must stay free of grpc, and every other quick.
    wanted = [given[0]] if given and given[0] in known else known
    parser = argparse.ArgumentParser(prog="tidemill", description=__doc__, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    loaded: dict[str, Command] = {}
    for name in wanted:
        command = plugins.load(commands, name, Command)()
        loaded[name] = command
        command.arguments(subparsers.add_parser(name, help=command.help, description=command.help, allow_abbrev=False))
    options = parser.parse_args(given)
    try:
        return loaded[options.command].run(options)
    except TidemillError as error:
        print(f"tidemill: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
