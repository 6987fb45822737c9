"""Checks of a client program: each runs by itself and tells in one line of JSON how it went."""

import argparse
import asyncio
import inspect
import json
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Server:
    """Where the server is.

    Args:
        grpc: host:port.
        http: host:port.
        repository: its models.
    """

    def __init__(self, grpc: str, http: str, repository: Path) -> None:
        self.grpc = grpc
        self.http = http
        self.repository = repository


class Checks:
    """The checks of a program, in order; each is a function of the server, plain or a coroutine's."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[Server], Any]] = {}
        self._aside: set[str] = set()

    def __call__(self, function: Callable[[Server], Any]) -> Callable[[Server], Any]:
        self._checks[function.__name__] = function
        return function

    def aside(self, function: Callable[[Server], Any]) -> Callable[[Server], Any]:
        """A check that mostly waits: it runs beside the others."""
        self._aside.add(function.__name__)
        return self(function)

    def include(self, *others: "Checks") -> "Checks":
        """Take those of other parts too."""
        for other in others:
            self._checks.update(other._checks)
            self._aside |= other._aside
        return self

    def main(self) -> None:
        """Run those that the command line names, or all."""
        parser = argparse.ArgumentParser()
        parser.add_argument("grpc")
        parser.add_argument("http")
        parser.add_argument("repository", type=Path)
        parser.add_argument("only", nargs="*")
        options = parser.parse_args()
        server = Server(options.grpc, options.http, options.repository)
        chosen = {name: check for name, check in self._checks.items() if not options.only or name in options.only}
        with ThreadPoolExecutor(1) as pool:
            waiting = {name: pool.submit(_outcome, chosen[name], server) for name in self._aside & chosen.keys()}
            for name, check in chosen.items():
                if name not in waiting:
                    _tell(name, _outcome(check, server))
            for name, outcome in waiting.items():
                _tell(name, outcome.result())


def _tell(name: str, outcome: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"check": name, **outcome}) + "\n")
    sys.stdout.flush()


def _outcome(check: Callable[[Server], Any], server: Server) -> dict[str, Any]:
    begun, error = time.monotonic(), ""
    try:
        found = check(server)
        if inspect.isawaitable(found):
            asyncio.run(_finish(found))
    except Exception:
        error = traceback.format_exc()
    return {"error": error, "seconds": round(time.monotonic() - begun, 2)}


async def _finish(found: Any) -> None:
    await asyncio.wait_for(found, 30)


def same(found: Any, expected: Any) -> None:
    """Raises AssertionError that shows both when they differ."""
    if found != expected:
        raise AssertionError(f"found {found!r}, expected {expected!r}")
