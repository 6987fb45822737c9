"""A worker as a process: its log, the ways in which it is told to end, and its exit status."""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

from tidemill.errors import TidemillError
from tidemill.training.worker.app import WorkerApp, build
from tidemill.training.worker.config import WorkerConfig
from tidemill.training.worker.stop import Stop

LOG = logging.getLogger(__name__)

WELL = 0
FAILED = 1
MISUSED = 2
GRACE = 0.8
"""Seconds in which a worker that is told to end does so, whatever it is doing."""
LEAVE = 15.0
"""Seconds in which a worker that has done its work sends its last spans."""


def run(config: WorkerConfig) -> int:
    """Work until all is done, or the worker is told to end; the exit status.

    A worker ends when it gets SIGTERM or SIGINT (status 128 + the signal's number), when its standard input comes to
    its end, which means that its launcher is gone (status 1), and when the training service says so (status 0).
    """
    _log_to_stdout(config.log_level)
    stop = Stop()
    status: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        status.append(128 + number)
        stop.set(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    threading.Thread(target=_watch_input, args=(stop, status), name="input", daemon=True).start()
    try:
        app = build(config, stop)
    except TidemillError as error:
        LOG.error("cannot start: %s", error.message)
        return MISUSED
    result: list[bool] = []
    work = threading.Thread(target=_work, args=(app, stop, result), name="work", daemon=True)
    work.start()
    stop.wait()
    told = not result
    deadline = time.monotonic() + (GRACE if told else LEAVE)
    if told:
        LOG.info("ends: %s", stop.reason)
    closing = threading.Thread(target=_close, args=(app, work, told), name="close", daemon=True)
    closing.start()
    closing.join(max(0.0, deadline - time.monotonic()))
    code = (status[0] if status else WELL) if told else (WELL if all(result) else FAILED)
    if told or closing.is_alive():  # taking Python and torch apart in good order would take longer than there is
        with suppress(OSError):  # nobody may be left to read
            sys.stdout.flush()
        os._exit(code)
    return code


def _work(app: WorkerApp, stop: Stop, result: list[bool]) -> None:
    try:
        result.append(app.run())
    except TidemillError as error:
        LOG.error("cannot start: %s", error.message)
        result.append(False)
    finally:
        stop.set("finished")


def _close(app: WorkerApp, work: threading.Thread, told: bool) -> None:
    if told:
        app.interrupt()
    work.join()
    app.close()


def _watch_input(stop: Stop, status: list[int]) -> None:
    """Wait for the end of standard input; unbuffered, because a reader's lock would be held when the process ends."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    if not stop.is_set:
        status.append(FAILED)
    stop.set("the launcher is gone")


def _log_to_stdout(level: str) -> None:
    """Plain lines, of our own code alone unless others warn: the launcher adds time and rank."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tidemill").setLevel(level)
    logging.getLogger("torch").setLevel(logging.ERROR)  # it warns of packages that are not installed
