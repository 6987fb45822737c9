"""A served registry for tests, and the oracle of its event log."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.support.serve import serving
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock
from tidemill.kv.base import Kv
from tidemill.registry.app import build
from tidemill.registry.config import RegistryConfig

T = TypeVar("T", pb.Model, pb.ModelVersion, pb.Alias)

DIGEST = "0123456789abcdef" * 4
"""A valid digest."""


def settings(**others: Any) -> RegistryConfig:
    """Settings of a registry on free ports, in memory unless told otherwise."""
    given: dict[str, Any] = {"port": 0, "ops_port": 0, "store": "sqlite::memory:"} | others
    return RegistryConfig(**given)


@asynccontextmanager
async def serve_registry(kv: Kv, *, clock: Clock | None = None, **others: Any) -> AsyncIterator[RegistryClient]:
    """A client of a registry that is served on `kv` while the block runs."""
    app = build(settings(**others), kv=kv, clock=clock)
    async with serving(app) as address, RegistryClient(address) as client:
        yield client


async def events_from(client: RegistryClient, first: int, last: int, model: str = "") -> list[pb.Event]:
    """Events of a watch from revision `first` up to `last`."""
    found: list[pb.Event] = []
    async with aclosing(client.watch(first, model)) as watch:
        async for response in watch:
            found += response.events
            if response.revision >= last:
                return found
    raise AssertionError("a watch ends only with an error")


@dataclass
class State:
    """What a registry holds, by resource name."""

    models: dict[str, pb.Model] = field(default_factory=dict)
    versions: dict[str, pb.ModelVersion] = field(default_factory=dict)
    aliases: dict[str, pb.Alias] = field(default_factory=dict)


async def listed(client: RegistryClient) -> State:
    """What the List methods tell."""
    state = State(
        models={model.name: model async for model in client.list_models(page_size=3)},
        aliases={alias.name: alias async for alias in client.list_aliases(page_size=3)},
    )
    for model in state.models:
        state.versions |= {version.name: version async for version in client.list_versions(model, page_size=3)}
    return state


def replay(events: Iterable[pb.Event]) -> State:
    """What somebody knows who has seen all events; checks that they are 1, 2, 3 …"""
    state = State()
    for expected, event in enumerate(events, start=1):
        assert event.revision == expected
        kind = event.WhichOneof("resource")
        if kind == "model":
            _apply(state.models, event, event.model)
            if event.type == pb.EVENT_TYPE_DELETED:
                for owned in (state.versions, state.aliases):
                    for name in [name for name in owned if name.startswith(f"{event.model.name}/")]:
                        del owned[name]
        elif kind == "model_version":
            _apply(state.versions, event, event.model_version)
            if event.type == pb.EVENT_TYPE_CREATED:
                state.models[_parent(event.model_version.name)].latest_version = event.model_version.version
        else:
            _apply(state.aliases, event, event.alias)
    for version in state.versions.values():
        pointing = [a.name for a in state.aliases.values() if _target(a) == version.name]
        version.aliases[:] = sorted(name.rpartition("/")[2] for name in pointing)
    return state


def _apply(known: dict[str, T], event: pb.Event, resource: T) -> None:
    assert (resource.name in known) == (event.type != pb.EVENT_TYPE_CREATED)
    if event.type == pb.EVENT_TYPE_DELETED:
        assert known.pop(resource.name).etag == resource.etag
    else:
        known[resource.name] = resource


def _parent(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _target(alias: pb.Alias) -> str:
    return f"{_parent(alias.name)}/versions/{alias.version}"
