"""Random changes by several clients of several registries: the event log is the state, whatever gets lost."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.registry import DIGEST, State, events_from, listed, replay, serve_registry
from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.clients.registry import RegistryClient
from tidemill.kv.base import Kv

MODELS = ["a", "b", "c"]
ALIASES = ["x", "y"]
OPERATIONS = 40
pytestmark = pytest.mark.parametrize("kv", ["sqlite-file", "etcd"], indirect=True)
EXPECTED = (errors.NotFound, errors.AlreadyExists, errors.FailedPrecondition, errors.Stale)


class Actor:
    """One client that makes random changes and notes those that it was told to have succeeded."""

    def __init__(self, client: RegistryClient, name: str, seed: str) -> None:
        self._client = client
        self._name = name
        self._random = random.Random(seed)
        self.acknowledged: list[str] = []
        """Etags of what was written."""

    async def run(self) -> None:
        actions = [
            (2, self._create_model),
            (3, self._update_model),
            (6, self._create_version),
            (2, self._update_version),
            (2, self._delete_version),
            (6, self._set_alias),
            (2, self._delete_alias),
            (1, self._delete_model),
        ]
        for number in range(OPERATIONS):
            [action] = self._random.choices([a for _, a in actions], [weight for weight, _ in actions])
            model = self._random.choice(MODELS)
            await self._persist(action, model, f"{self._name}-{number}")

    async def _persist(self, action: Callable[[str, str], Awaitable[str]], model: str, tag: str) -> None:
        """Try until it is known what came of it, as far as that can be known."""
        try:
            etag = await action(model, tag)
        except EXPECTED:
            return
        except errors.Unavailable:
            return  # unknown or refused; whichever it was, log and state must agree on it
        if etag:
            self.acknowledged.append(etag)

    async def _create_model(self, model: str, tag: str) -> str:
        return (await self._client.create_model(model, tags={"by": tag}, request_id=tag)).etag

    async def _update_model(self, model: str, tag: str) -> str:
        etag = (await self._client.get_model(model)).etag if self._random.random() < 0.5 else ""
        return (await self._client.update_model(model, description=tag, etag=etag)).etag

    async def _delete_model(self, model: str, tag: str) -> str:
        await self._client.delete_model(model, force=self._random.random() < 0.5)
        return ""

    async def _create_version(self, model: str, tag: str) -> str:
        request_id = self._random.choice(["", tag])
        made = await self._client.create_version(
            model, format="onnx", artifact=DIGEST, tags={"by": tag}, request_id=request_id
        )
        return made.etag

    async def _update_version(self, model: str, tag: str) -> str:
        number = self._random.randint(1, 8)
        return (await self._client.update_version(model, number, tags={"by": tag})).etag

    async def _delete_version(self, model: str, tag: str) -> str:
        await self._client.delete_version(model, self._random.randint(1, 8))
        return ""

    async def _set_alias(self, model: str, tag: str) -> str:
        alias = self._random.choice(ALIASES)
        await self._client.set_alias(model, alias, self._random.randint(1, 8))
        return ""

    async def _delete_alias(self, model: str, tag: str) -> str:
        await self._client.delete_alias(model, self._random.choice(ALIASES))
        return ""


async def check(clients: list[RegistryClient], actors: list[Actor]) -> None:
    last = await clients[0].revision()
    logs = [await events_from(client, 1, last) for client in clients]
    assert all(log == logs[0] for log in logs)
    state = replay(logs[0])
    for client in clients:
        assert state == await listed(client)
    check_versions(logs[0])
    check_aliases(state)
    etags = Counter(resource(event).etag for event in logs[0] if event.type != pb.EVENT_TYPE_DELETED)
    assert set(etags.values()) <= {1}
    written = [etag for actor in actors for etag in actor.acknowledged]
    assert set(written) <= set(etags), "an acknowledged change is not in the log"
    assert max(Counter(written).values(), default=0) <= 1


def resource(event: pb.Event) -> pb.Model | pb.ModelVersion | pb.Alias:
    return getattr(event, event.WhichOneof("resource") or "")  # type: ignore[no-any-return]


def check_versions(log: list[pb.Event]) -> None:
    """Numbers are given 1, 2, 3 … in each life of a model, and no call makes two versions."""
    given: dict[str, int] = {}
    calls: set[str] = set()
    for event in log:
        if event.HasField("model") and event.type == pb.EVENT_TYPE_CREATED:
            given[event.model.name] = 0
        if event.HasField("model_version") and event.type == pb.EVENT_TYPE_CREATED:
            model = event.model_version.name.rpartition("/versions/")[0]
            given[model] += 1
            assert event.model_version.version == given[model]
            assert event.model_version.tags["by"] not in calls
            calls.add(event.model_version.tags["by"])


def check_aliases(state: State) -> None:
    """No alias points at nothing."""
    for alias in state.aliases.values():
        assert f"{alias.name.rpartition('/aliases/')[0]}/versions/{alias.version}" in state.versions


@pytest.mark.parametrize("seed", range(2))
async def test_the_log_is_the_state(kv: Kv, seed: int) -> None:
    async with serve_registry(kv) as one, serve_registry(kv) as two:
        clients = [one, two]
        actors = [Actor(client, f"{seed}-{i}", f"{seed}-{i}") for i, client in enumerate(clients * 2)]
        await asyncio.gather(*(actor.run() for actor in actors))
        await check(clients, actors)


@pytest.mark.parametrize("seed", range(2))
async def test_the_log_is_the_state_when_answers_get_lost(kv: Kv, seed: int) -> None:
    chance = random.Random(seed)
    faults = list(Fault)

    def choose() -> Fault:
        return chance.choice(faults) if chance.random() < 0.4 else Fault.NONE

    async with (
        serve_registry(FaultyKv(kv, choose)) as one,
        serve_registry(FaultyKv(kv, choose)) as two,
        serve_registry(kv) as sound,
    ):
        actors = [Actor(client, f"{seed}-{i}", f"{seed}-{i}") for i, client in enumerate([one, two] * 2)]
        await asyncio.gather(*(actor.run() for actor in actors))
        await check([sound], actors)
        assert sum(len(actor.acknowledged) for actor in actors) > 10
