"""The gateway as a process: it drains on SIGTERM, and says in one line why it cannot start."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from tests.support.gateway import NOWHERE, serve_gateway, serve_training
from tests.support.wait import until


@contextlib.asynccontextmanager
async def process(**settings: str) -> AsyncIterator[Process]:
    """The gateway with these settings, on free ports unless they say otherwise; ended at the end."""
    given = {"PORT": "0", "OPS_PORT": "0", "OIP_PORT": "0", "TFS_PORT": "0", **settings}
    services = {f"TIDEMILL_{name}_ADDRESS": NOWHERE for name in ("REGISTRY", "ARTIFACTS", "TRAINING", "INFERENCE")}
    own = {key if key.startswith("TIDEMILL_") else f"TIDEMILL_GATEWAY_{key}": value for key, value in given.items()}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidemill.gateway", env={**os.environ, **services, **own}, stdout=PIPE, stderr=PIPE
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


async def test_sigterm_lets_a_request_finish(tmp_path: Path) -> None:
    announced = tmp_path / "ports"
    async with (
        serve_training() as (training, address),
        process(ANNOUNCE_FILE=str(announced), TIDEMILL_TRAINING_ADDRESS=address) as gateway,
    ):
        await until(announced.exists)
        port = json.loads(announced.read_text())["grpc"]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            slow = asyncio.create_task(http.get("/api/v1/jobs/slow"))
            await training.entered.wait()
            gateway.send_signal(signal.SIGTERM)

            async def closed() -> bool:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    return True
                writer.close()
                return False

            await until(closed)
            training.release.set()
            assert (await slow).status_code == 200
        assert await asyncio.wait_for(gateway.wait(), 20) == 0


async def test_a_port_in_use_is_one_line_and_status_2() -> None:
    async with serve_gateway() as running:
        taken = str(running.ports["tfs"])
        async with process(TFS_PORT=taken) as gateway:
            _, err = await asyncio.wait_for(gateway.communicate(), 30)
            assert gateway.returncode == 2
            (line,) = err.decode().splitlines()
            assert json.loads(line)["message"].startswith(f"cannot start: cannot listen on 127.0.0.1:{taken}")


async def test_a_wrong_setting_is_status_2() -> None:
    async with process(TFS_PORT="70000") as gateway:
        _, err = await asyncio.wait_for(gateway.communicate(), 30)
        assert gateway.returncode == 2
        assert "tfs_port: must be in [0, 65535]" in err.decode()
