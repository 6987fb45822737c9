"""A service of `tidemill serve` with a planted fault; run by `faulty_serve` in place of the service itself.

One of its functions, which answers hostile requests among others, is replaced by one that goes wrong as named:
`<service>-error` raises an error that nobody expects, `-death` ends the process, `-leak` keeps memory, `-tardy` takes
its time, `-lie` answers something else.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

VARIABLE = "PLANTED_FAULT"
"""Names the fault."""
_KEPT: list[bytes] = []


def _error(number: int) -> None:
    if number % 20 == 0:
        int("not a number")


def _death(number: int) -> None:
    if number == 10:
        os.kill(os.getpid(), signal.SIGKILL)


def _leak(number: int) -> None:
    _KEPT.append(random.randbytes(1 << 17))


def _tardy(number: int) -> None:
    time.sleep(0.3)


FAULTS: dict[str, Callable[[int], None]] = {"error": _error, "death": _death, "leak": _leak, "tardy": _tardy}


def _inference(fault: str) -> None:
    """Break how the first process reads requests, or what it answers."""
    from tidemill.inference.protocols.oip.plain import Plain
    from tidemill.inference.protocols.oip.requests import Reader
    from tidemill.inference.protocols.oip.responses import Writer

    numbers = itertools.count(1)
    if fault == "lie":
        write = Writer.response

        def lying(self: Writer, *args: Any, **options: Any) -> Any:
            response = write(self, *args, **options)
            if next(numbers) % 7 == 0 and response.raw_output_contents:
                data = response.raw_output_contents[0]
                response.raw_output_contents[0] = bytes(byte ^ 1 for byte in data)
            return response

        def ordinary(self: Plain, *args: Any, **options: Any) -> None:
            """Have the writer make every answer."""

        Writer.response = lying  # type: ignore[method-assign]
        Plain.response = ordinary  # type: ignore[method-assign]
        return
    read = Reader.call

    def broken(self: Reader, *args: Any, **options: Any) -> Any:
        FAULTS[fault](next(numbers))
        return read(self, *args, **options)

    Reader.call = broken  # type: ignore[method-assign]


def _gateway(fault: str) -> None:
    """Break the routes that infer."""
    from tidemill.gateway.route import Route, Table

    numbers: Iterator[int] = itertools.count(1)
    make = Table.__init__

    def broken(route: Route) -> Route:
        if not route.template.endswith("/infer"):
            return route

        async def handler(request: Any) -> Any:
            FAULTS[fault](next(numbers))
            return await route.handler(request)

        return replace(route, handler=handler)

    def patched(self: Table, routes: Any, **options: Any) -> None:
        make(self, map(broken, routes), **options)

    Table.__init__ = patched  # type: ignore[method-assign]


def plant(service: str) -> None:
    """Break this service, if the fault belongs to it."""
    owner, _, fault = os.environ[VARIABLE].partition("-")
    if owner == service:
        {"inference": _inference, "gateway": _gateway}[service](fault)
