"""Runs programs under a supervisor until somebody says that it is enough."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tidemill.cli.supervisor import PORT_IN_USE, Program, Supervisor, console
from tidemill.errors import Unavailable


def run(programs: Sequence[Program], logs: Path, welcome: str, start_seconds: float, *, quiet: bool = False) -> int:
    """Run `programs`; 0 after Ctrl-C or SIGTERM.

    Args:
        programs: what to run.
        logs: directory of their log files.
        welcome: printed when all are ready.
        start_seconds: longest time until then.
        quiet: whether their log lines are not shown.

    Raises:
        Unavailable: one cannot run.
    """
    return asyncio.run(_run(programs, logs, welcome, start_seconds, quiet))


async def _run(programs: Sequence[Program], logs: Path, welcome: str, start_seconds: float, quiet: bool) -> int:
    show = console(max(len(program.name) for program in programs), sys.stderr)
    supervisor = Supervisor(programs, logs, (lambda name, line: None) if quiet else show)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    work = asyncio.create_task(_work(supervisor, welcome, start_seconds))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        return 0
    finally:
        for task in (work, stopped):
            task.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
        await supervisor.stop()


async def _work(supervisor: Supervisor, welcome: str, start_seconds: float) -> None:
    try:
        await supervisor.start(start_seconds)
    except Unavailable as error:
        if error.reason != PORT_IN_USE:
            raise
        raise Unavailable(f"{error.message}; --port-offset N moves all ports", reason=PORT_IN_USE) from error
    print(welcome, flush=True)
    await supervisor.run()
