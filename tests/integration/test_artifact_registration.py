"""The artifact service announces itself at the registry, and does without it."""

from pathlib import Path

from tests.support.artifacts import config, content, raw_calls, served
from tests.support.ports import free_ports
from tests.support.serve import serving
from tests.support.wait import until
from tidemill.artifacts.app import build
from tidemill.clients.registry import RegistryClient
from tidemill.registry.app import build as build_registry
from tidemill.registry.config import RegistryConfig


async def test_an_instance_is_announced_while_it_runs(tmp_path: Path) -> None:
    registry = build_registry(RegistryConfig(port=0, ops_port=0, store="sqlite::memory:"))
    async with serving(registry) as address, RegistryClient(address) as client:

        async def found() -> list[tuple[str, str]]:
            return [(each.address, each.labels["store"]) for each in await client.list_instances("artifacts")]

        async with serving(build(config(tmp_path, registry_address=address))) as own:
            await until(found)
            assert await found() == [(own, "directory")]
        assert await found() == []


async def test_a_registry_that_is_away_does_not_matter(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with served(config(tmp_path, registry_address=f"127.0.0.1:{port}")) as raw, raw_calls(raw.caller.address):
        assert (await raw.upload(content(100))).size == 100
