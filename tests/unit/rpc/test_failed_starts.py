"""A service that cannot start leaves nothing behind."""

import socket

import pytest

from tests.support.ports import free_ports
from tidemill.errors import TidemillError, Unavailable
from tidemill.rpc.app import App, observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import AioServer
from tidemill.telemetry.setup import setup


class Toy:
    """A service with two things to open, and what was done."""

    def __init__(self, config: ServerConfig, *, fails: str = "", sticks: bool = False) -> None:
        telemetry = setup("toy")
        self.steps: list[str] = []
        self._fails = fails
        self._sticks = sticks
        self.app = App(
            "toy",
            config,
            telemetry,
            AioServer([], observer(config, telemetry)),
            starters=[lambda: self._open("first"), lambda: self._open("second")],
            closers=[lambda: self._close("second"), lambda: self._close("first")],
        )

    async def _open(self, name: str) -> None:
        if name == self._fails:
            raise Unavailable(f"no {name}", reason="AWAY")
        self.steps.append(f"open {name}")

    async def _close(self, name: str) -> None:
        if self._sticks and name == "second":
            raise OSError("it sticks")
        self.steps.append(f"close {name}")


async def test_what_was_started_is_closed_when_a_starter_fails() -> None:
    toy = Toy(ServerConfig(), fails="second")
    with pytest.raises(Unavailable, match="no second"):
        await toy.app.start()
    assert toy.steps == ["open first", "close second", "close first"]
    await toy.app.stop(grace=0)
    assert toy.steps == ["open first", "close second", "close first"], "once"


@pytest.mark.parametrize("taken", ["port", "ops_port"])
async def test_a_port_that_is_taken_is_no_reason_to_keep_the_other(taken: str) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ports = {"port": port, "ops_port": port, taken: holder.getsockname()[1]}
        toy = Toy(ServerConfig(**ports))
        with pytest.raises(Unavailable, match="cannot listen"):
            await toy.app.start()
    assert toy.steps == ["open first", "open second", "close second", "close first"]
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_the_first_error_counts(caplog: pytest.LogCaptureFixture) -> None:
    toy = Toy(ServerConfig(), fails="second", sticks=True)
    with pytest.raises(TidemillError, match="no second"):
        await toy.app.start()
    assert toy.steps == ["open first", "close first"]
    assert "it sticks" in caplog.text
