"""The process of a model: connects to the server that has started it, loads, and runs what it is given."""

import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.errors import Internal, Invalid, TidemillError
from tidemill.inference.isolation.channel import Channel, ChannelClosed, Message
from tidemill.inference.isolation.faults import to_fault
from tidemill.inference.isolation.link import Link, Program, failed
from tidemill.inference.isolation.package import unpack

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> int:
    """Run until the server wants no more; the exit status.

    Args:
        descriptor: of our end of the socket pair.
        parent: process id of the server, with which this process ends.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) or os.getppid() != parent:
        return 1
    os.set_inheritable(descriptor, False)
    faulthandler.enable()
    with socket.socket(fileno=descriptor) as end:
        link = Link(Channel(end))
        signal.signal(signal.SIGTERM, lambda *_: link.jobs.put(None))
        try:
            return _run(link)
        except ChannelClosed:
            return 0  # whoever is gone needs no answer


def _run(link: Link) -> int:
    channel = link._channel
    message = channel.receive()
    if message is None:
        return 0
    files = unpack(channel.descriptor(), message["files"])
    running: list[Program] = []  # while it loads, a model may ask the server already
    threading.Thread(target=_serve, args=(link, running), name="link", daemon=True).start()
    try:
        program, body = _load(link, message, files)
    except TidemillError as error:
        link.send({"op": "failed", "error": to_fault(error)})
        return 1
    del files
    running.append(program)
    link.send({"op": "loaded", "body": body})
    while (job := link.jobs.get()) is not None:
        job()
        del job
    program.close()
    return 0


def _load(link: Link, message: Message, files: Mapping[str, bytes]) -> tuple[Program, Any]:
    """The loaded program, and what the server shall know of it.

    Raises:
        TidemillError: the model cannot be loaded.
    """
    begin = importlib.import_module(message["program"]).load
    try:
        program, body = begin(link, message["payload"], files)
    except TidemillError:
        raise
    except BaseException as error:  # whatever a model does while it loads: its owner shall read it
        traceback.print_exc()
        raise Invalid(f"the model does not load: {described(error)}", reason="MODEL_REFUSED") from error
    return program, body


def described(error: BaseException) -> str:
    """An exception's type and text, short enough for a message."""
    return "".join(traceback.format_exception_only(error)).strip()[-800:]


def _serve(link: Link, running: Sequence[Program]) -> None:
    """Read until the server is gone."""
    try:
        link.serve(lambda requests: _execute(link, running[0], requests), lambda: running[0].ready())
    except ChannelClosed:
        pass
    finally:  # whatever else ends this thread is printed, and ends the process
        link.jobs.put(None)


def _execute(link: Link, program: Program, requests: Sequence[Message]) -> None:
    started = time.monotonic_ns()
    tickets = [request["ticket"] for request in requests]
    try:
        replies = program.execute(requests)
    except TidemillError as error:
        cause = error.__cause__ if error.reason == "EXECUTION_FAILED" else None
        if cause is not None:
            traceback.print_exception(cause)
        fault = to_fault(error if cause is None else Internal(described(cause), reason=error.reason))
        replies = [dict(failed(ticket, fault)) for ticket in tickets]
    except Exception as error:  # noqa: BLE001  # code of others: it is printed, and told to who called it
        traceback.print_exc()
        fault = to_fault(Internal(described(error), reason="EXECUTION_FAILED"))
        replies = [dict(failed(ticket, fault)) for ticket in tickets]
    link.send({"op": "replies", "replies": replies, "took": time.monotonic_ns() - started})


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
