"""The registry over a real etcd that goes and comes, and as a process that is killed."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.etcd import EtcdServer, enable_auth
from tests.support.ports import free_ports
from tests.support.registry import DIGEST, events_from, listed, replay, settings
from tests.support.serve import serving
from tests.support.wait import until
from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry.app import build
from tidemill.registry.keys import HEAD
from tidemill.registry.records import FORMAT, Head, encode

SERVICES = ["", "tidemill.api.registry.v1.RegistryService", "tidemill.api.registry.v1.DiscoveryService"]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of this test's own, not started."""
    server = EtcdServer(tmp_path / "etcd")
    yield server
    server.kill()


class Health:
    """What the health service at an address says."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    async def serving(self) -> bool:
        return await self._all(health_pb2.HealthCheckResponse.SERVING)

    async def not_serving(self) -> bool:
        return await self._all(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def _all(self, status: int) -> bool:
        answers = [await self._stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in SERVICES]
        return all(answer.status == status for answer in answers)

    async def __aenter__(self) -> "Health":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._channel.close()


@asynccontextmanager
async def over(etcd: EtcdServer) -> AsyncIterator[tuple[RegistryClient, Health]]:
    config = settings(store=f"etcd://{etcd.address}?prefix=tidemill/", heartbeat=0.5)
    async with serving(build(config)) as address, RegistryClient(address) as client, Health(address) as health:
        yield client, health


async def away(client: RegistryClient) -> bool:
    """Whether calls are refused at once: quicker than the store's own time limit."""
    try:
        await client._caller.unary(client._registry.GetModel, pb.GetModelRequest(name="models/m"), timeout=4)
    except errors.Unavailable as error:
        return error.reason == "STORE_AWAY"
    except (errors.NotFound, errors.DeadlineExceeded):
        pass
    return False


async def answers(client: RegistryClient) -> bool:
    try:
        await client.revision()
    except errors.Unavailable:
        return False
    return True


async def test_it_starts_without_its_store_and_recovers(etcd: EtcdServer) -> None:
    async with over(etcd) as (client, health):
        await until(health.not_serving)
        assert await away(client)
        with pytest.raises(errors.Unavailable):
            await client.create_model("m")
        with pytest.raises(errors.Unavailable):
            await client.register_instance("s", "i", "127.0.0.1:1", ttl=5)
        await asyncio.to_thread(etcd.start)
        await until(health.serving)
        await until(lambda: answers(client))
        assert (await client.create_model("m")).etag == '"1"'


async def test_it_logs_in_to_its_store(etcd: EtcdServer) -> None:
    await asyncio.to_thread(etcd.start)
    enable_auth(etcd, user="ann", password="secret", prefix="ann/")
    store = f"etcd://{etcd.address}?prefix=ann/"
    app = build(settings(store=store, store_user="ann", store_password="secret"))
    async with serving(app) as address, RegistryClient(address) as client:
        assert (await client.create_model("m")).name == "models/m"
    for wrong in (settings(store=store), settings(store=store, store_user="ann", store_password="wrong")):
        with pytest.raises((errors.Unauthenticated, errors.PermissionDenied)):
            await build(wrong).start()


@pytest.mark.parametrize("fault", ["killed", "hanging"])
async def test_an_outage_loses_nothing(etcd: EtcdServer, fault: str) -> None:
    await asyncio.to_thread(etcd.start)
    async with over(etcd) as (client, health):
        await until(health.serving)
        await client.create_model("m")
        registration = Registration(client, service="s", instance_id="i", address="127.0.0.1:1", ttl=3)
        running = asyncio.ensure_future(registration.run())
        await until(client.list_instances)
        async with aclosing(client.watch(1)) as watch:
            while (await anext(watch)).revision < 1:
                pass
            if fault == "killed":
                etcd.kill()
            else:
                etcd.pause()
            await until(lambda: away(client), 60)
            await until(health.not_serving)
            if fault == "killed":
                await asyncio.to_thread(etcd.start)
            else:
                etcd.resume()
            await until(health.serving)
            await until(lambda: answers(client))
            made = await client.create_version("m", format="onnx", artifact=DIGEST)
            seen: list[pb.Event] = []
            async with asyncio.timeout(30):
                while not seen:
                    seen += (await anext(watch)).events
            assert [event.model_version for event in seen] == [made]
        await until(client.list_instances)
        assert not running.done()
        running.cancel()


class Process:
    """The registry as a process of its own."""

    def __init__(self, folder: Path) -> None:
        [self.port] = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.store = folder / "registry.db"
        self._announced = folder / "ports.json"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._announced.unlink(missing_ok=True)
        self._process = await self.spawn()
        await until(self._announced.exists, 60)
        assert json.loads(self._announced.read_text())["grpc"] == self.port

    async def spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidemill.registry", "--port", str(self.port), "--ops-port", "0"),
            *("--store", f"sqlite://{self.store}", "--announce-file", str(self._announced)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

    async def end(self, how: signal.Signals) -> int:
        if self._process is None or self._process.returncode is not None:
            return 0
        self._process.send_signal(how)
        await self._process.communicate()
        return int(self._process.returncode or 0)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    registry = Process(tmp_path)
    yield registry
    await registry.end(signal.SIGKILL)


async def test_kills_lose_no_acknowledged_change_and_no_event(process: Process) -> None:
    acknowledged: dict[str, pb.Model] = {}
    seen: list[pb.Event] = []
    stop = asyncio.Event()

    async def write(client: RegistryClient) -> None:
        number = 0
        while not stop.is_set():
            name = f"m{number}"
            try:
                acknowledged[name] = await client.create_model(name, request_id=name)
                number += 1
            except (errors.Unavailable, errors.Cancelled, errors.Internal):
                await asyncio.sleep(0.01)

    async def watch(client: RegistryClient) -> None:
        async for response in client.watch(1):
            seen.extend(response.events)

    async with RegistryClient(process.address) as client:
        await process.start()
        tasks = [asyncio.ensure_future(write(client)), asyncio.ensure_future(watch(client))]
        for _ in range(3):
            before = len(acknowledged)
            await until(lambda before=before: len(acknowledged) >= before + 20)  # type: ignore[misc]
            await process.end(signal.SIGKILL)
            await process.start()
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 20, 60)
        stop.set()
        await tasks[0]
        last = await client.revision()
        await until(lambda: len(seen) >= last)
        tasks[1].cancel()
        assert seen == await events_from(client, 1, last)
        state = replay(seen)
        assert state == await listed(client)
        for name, model in acknowledged.items():
            assert state.models[f"models/{name}"] == model
    assert await process.end(signal.SIGTERM) == 0


async def test_a_store_of_a_newer_release_ends_the_process_with_one_line(process: Process) -> None:
    kv = await SqliteKv.open(process.store)
    await kv.put(HEAD, encode(Head(format=FORMAT + 1)))
    await kv.close()
    started = await process.spawn()
    output, errors_output = await asyncio.wait_for(started.communicate(), 60)
    assert started.returncode == 2
    [line] = (output + errors_output).decode().strip().splitlines()
    assert "DATA_VERSION_NEWER" in line
    assert "use a newer one" in line


async def test_a_file_in_use_ends_the_second_process_with_one_line(process: Process) -> None:
    await process.start()
    second = await process.spawn()
    output, errors_output = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 2
    [line] = (output + errors_output).decode().strip().splitlines()
    assert "STORE_IN_USE" in line
