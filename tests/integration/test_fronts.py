"""Several processes that answer on one port: to clients they are one server."""

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest

from tests.support import onnxmodels
from tests.support.inference import Serving
from tests.support.modelfolders import Folder, factor, serve_folder
from tests.support.wait import until
from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.clients.inference import InferenceClient

X = {"x": np.ones((1, 2), np.float32)}
CONNECTIONS = 12
"""So many go to both of two processes for certain: they are dealt out in turn."""


def fronts() -> set[int]:
    """Fronts that this process has started and that still run."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    found = set()
    for pid in map(int, task.read_text().split()):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"tidemill.inference.fronts" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def processes(serving: Serving) -> int:
    """How many processes listen on the server's port."""
    wanted = f"{serving.app.port:04X}"
    inodes = set()
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    for line in [line for table in tables for line in table]:
        fields = line.split()
        if fields[1].endswith(f":{wanted}") and fields[3] == "0A":
            inodes.add(fields[9])
    return len(inodes)


async def replace_fronts(serving: Serving) -> None:
    """Kill all fronts, and return when others listen."""
    before = fronts()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: fronts() and not fronts() & before, 60, "another front has started")
    await until(lambda: processes(serving) == 2, 60, "it listens")


@pytest.fixture
async def folders(tmp_path: Path) -> Folder:
    folders = Folder(tmp_path / "models")
    folders.version("m", 1, onnxmodels.scale(1))
    return folders


@pytest.fixture
async def serving(folders: Folder, tmp_path: Path) -> AsyncIterator[Serving]:
    traces: dict[str, Any] = {"traces": f"file:{tmp_path / 'traces'}", "trace_sample": 0.0}
    async with serve_folder(folders.root, fronts=2, model_control="explicit", load_models=("*",), **traces) as serving:
        await serving.serves("m")
        await until(lambda: processes(serving) == 2, 60, "both processes listen")
        yield serving


class Everyone:
    """Clients with connections of their own, which so reach every process."""

    def __init__(self, clients: list[InferenceClient]) -> None:
        self.clients = clients

    async def versions(self, model: str = "m", version: str = "") -> Counter[tuple[float, str]]:
        """What all of them get: the factor, and the version that says so."""
        results = await asyncio.gather(*(client.infer(model, X, version=version) for client in self.clients))
        return Counter((float(result.outputs["y"][0, 0]), result.model_version) for result in results)


@pytest.fixture
async def everyone(serving: Serving) -> AsyncIterator[Everyone]:
    async with AsyncExitStack() as stack:
        yield Everyone(
            [await stack.enter_async_context(InferenceClient(serving.app.address)) for _ in range(CONNECTIONS)]
        )


async def test_both_answer_and_one_keeps_the_books(serving: Serving, everyone: Everyone) -> None:
    for _ in range(5):
        assert await everyone.versions() == {(1.0, "1"): CONNECTIONS}
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        stub = pg.GRPCInferenceServiceStub(channel)
        (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="m", version="1"))).model_stats
    assert stats.inference_stats.success.count == 5 * CONNECTIONS
    assert stats.inference_count == 5 * CONNECTIONS
    url = f"http://127.0.0.1:{serving.app.ops_port}/metrics"
    shown = (await asyncio.to_thread(lambda: urlopen(url, timeout=10).read())).decode()
    assert f'tidemill_inferences_total{{model="m",outcome="success",version="1"}} {5 * CONNECTIONS}.0' in shown
    assert "tidemill_models_loaded 1.0" in shown
    assert 'tidemill_model_loads_total{outcome="success"} 1.0' in shown


async def test_a_load_and_an_unload_hold_everywhere(folders: Folder, serving: Serving, everyone: Everyone) -> None:
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        stub = pg.GRPCInferenceServiceStub(channel)
        for number in (2, 3, 4):
            folders.version("m", number, onnxmodels.scale(number))
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"))
            assert await everyone.versions() == {(float(number), str(number)): CONNECTIONS}
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"))
    for client in everyone.clients:
        with pytest.raises((errors.NotFound, errors.Unavailable), match="Request for unknown model"):
            await client.infer("m", X)
        assert not await client.model_ready("m")


def told(folder: Path) -> int:
    """How many executions the traces below `folder` tell of."""
    lines = [line for path in folder.glob("traces/*") for line in path.read_text().splitlines()]
    return sum("inference.execute" in line for line in lines)


async def test_trace_settings_hold_everywhere(serving: Serving, everyone: Everyone, tmp_path: Path) -> None:
    async def change(level: str) -> None:
        async with grpc.aio.insecure_channel(serving.app.address) as channel:
            request = pb.TraceSettingRequest(model_name="m")
            request.settings["trace_level"].value.append(level)
            request.settings["trace_rate"].value.append("1")
            await pg.GRPCInferenceServiceStub(channel).TraceSetting(request)

    await change("OFF")
    await everyone.versions()
    assert told(tmp_path) == 0
    await change("TIMESTAMPS")
    await everyone.versions()
    await until(lambda: told(tmp_path) == CONNECTIONS, what="every request is recorded")


async def test_only_so_many_requests_are_recorded_in_all(serving: Serving, everyone: Everyone, tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        stub = pg.GRPCInferenceServiceStub(channel)
        request = pb.TraceSettingRequest(model_name="m")
        for name, value in (("trace_level", "TIMESTAMPS"), ("trace_rate", "1"), ("trace_count", "5")):
            request.settings[name].value.append(value)
        await stub.TraceSetting(request)
        for _ in range(2):
            await everyone.versions()
        left = (await stub.TraceSetting(pb.TraceSettingRequest(model_name="m"))).settings["trace_count"].value
        assert list(left) == ["0"]
    await until(lambda: told(tmp_path) >= 5, what="five are recorded")
    for _ in range(2):
        await everyone.versions()
    assert told(tmp_path) == 5


async def test_log_settings_hold_everywhere(folders: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with serve_folder(folders.root, fronts=2, model_control="explicit", load_models=("*",)) as serving:
        await until(lambda: processes(serving) == 2, 60, "both processes listen")

        async def heard(wanted: bool) -> str:
            """What fronts write when every process is asked for what is not there."""
            async with grpc.aio.insecure_channel(serving.app.address) as channel:
                request = pb.LogSettingsRequest()
                request.settings["log_warning"].bool_param = wanted
                await pg.GRPCInferenceServiceStub(channel).LogSettings(request)
            capfd.readouterr()
            for _ in range(CONNECTIONS):
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(serving.app.address, options=options) as channel:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await pg.GRPCInferenceServiceStub(channel).RepositoryModelLoad(
                            pb.RepositoryModelLoadRequest(model_name="nothing")
                        )
            return capfd.readouterr().err

        assert "failed to load 'nothing'" not in await heard(False)
        assert "failed to load 'nothing'" in await heard(True)
        assert "failed to load 'nothing'" not in await heard(False)
        await replace_fronts(serving)
        assert "failed to load 'nothing'" not in await heard(False), "the new front has been told"


async def test_what_a_dead_front_has_counted_stays(serving: Serving, everyone: Everyone) -> None:
    url = f"http://127.0.0.1:{serving.app.ops_port}/metrics"
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        stub = pg.GRPCInferenceServiceStub(channel)

        async def counted() -> tuple[int, float]:
            try:
                (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="m", version="1"))).model_stats
            except grpc.aio.AioRpcError:  # a connection of the dead
                return 0, 0
            shown = (await asyncio.to_thread(lambda: urlopen(url, timeout=10).read())).decode()
            (line,) = [
                one
                for one in shown.splitlines()
                if one.startswith('tidemill_inferences_total{model="m",outcome="success"')
            ]
            return stats.inference_count, float(line.split()[-1])

        for _ in range(3):
            await everyone.versions()
        assert await counted() == (3 * CONNECTIONS, 3 * CONNECTIONS)
        for _ in range(2):
            await replace_fronts(serving)
        assert await until(counted) == (3 * CONNECTIONS, 3 * CONNECTIONS)


async def test_errors_are_the_same_from_each(everyone: Everyone) -> None:
    for client in everyone.clients:
        with pytest.raises(errors.Invalid, match="unexpected inference input 'nope' for model 'm'"):
            await client.infer("m", {"nope": X["x"]})
        with pytest.raises(errors.NotFound, match="Request for unknown model: 'q' is not found"):
            await client.infer("q", X)
        with pytest.raises(errors.Invalid, match="stol"):
            await client.infer("m", X, version="x")


async def test_a_killed_front_comes_back_and_its_callers_find_the_other(serving: Serving, everyone: Everyone) -> None:
    await replace_fronts(serving)

    async def answered() -> bool:
        try:
            return await everyone.versions() == {(1.0, "1"): CONNECTIONS}
        except (errors.Unavailable, errors.Cancelled):  # connections of the dead
            return False

    await until(answered, 30, "all are answered")


async def test_a_long_temporary_directory_does_no_harm(
    folders: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with serve_folder(folders.root, fronts=2) as serving:
        await until(lambda: processes(serving) == 2, 60, "both listen")


async def test_nothing_is_left(folders: Folder) -> None:
    before = fronts()
    async with serve_folder(folders.root, fronts=3) as serving:
        await until(lambda: processes(serving) == 3, 60, "all listen")
        assert await factor(serving, "m") == (1.0, "1")
        assert len(fronts() - before) == 2
    assert fronts() <= before
