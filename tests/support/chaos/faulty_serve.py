"""`tidemill serve`, with services that can have a planted fault."""

import sys
from dataclasses import replace

from tidemill.cli import __main__ as cli
from tidemill.cli.serving import Serving
from tidemill.cli.supervisor import Program

if __name__ == "__main__":
    programs = Serving.programs

    def faulty(self: Serving) -> list[Program]:
        return [replace(program, module=f"tests.support.chaos.faulty_{program.name}") for program in programs(self)]

    Serving.programs = faulty  # type: ignore[method-assign]
    sys.exit(cli.main())
