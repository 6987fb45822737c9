"""What a client of the registry can rely on, over both kinds of key-value store."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.registry import DIGEST, events_from, listed, replay, serve_registry
from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.clients.registry import RegistryClient
from tidemill.kv.base import Kv

pytestmark = pytest.mark.parametrize("kv", ["sqlite-file", "etcd"], indirect=True)


@pytest.fixture
async def client(kv: Kv) -> AsyncIterator[RegistryClient]:
    async with serve_registry(kv) as client:
        yield client


async def version(client: RegistryClient, model: str = "digits", **others: object) -> pb.ModelVersion:
    return await client.create_version(model, format="onnx", artifact=DIGEST, **others)  # type: ignore[arg-type]


class TestModels:
    async def test_a_model_is_made_read_changed_and_deleted(self, client: RegistryClient) -> None:
        made = await client.create_model("digits", description="ten", tags={"team": "vision"})
        assert (made.name, made.description, dict(made.tags)) == ("models/digits", "ten", {"team": "vision"})
        assert made.latest_version == 0
        assert await client.get_model("digits") == made
        changed = await client.update_model("models/digits", description="new")
        assert (changed.description, dict(changed.tags)) == ("new", {"team": "vision"})
        assert changed.etag != made.etag
        assert changed.create_time == made.create_time
        assert (await client.update_model("digits", tags={})).tags == {}
        await client.delete_model("digits")
        with pytest.raises(errors.NotFound) as missing:
            await client.get_model("digits")
        assert missing.value.reason == "MODEL_NOT_FOUND"

    async def test_a_name_is_taken_once(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        with pytest.raises(errors.AlreadyExists):
            await client.create_model("digits")
        results = await asyncio.gather(*(client.create_model("race") for _ in range(8)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExists"] * 7 + ["Model"]

    async def test_an_old_etag_changes_nothing(self, client: RegistryClient) -> None:
        old = await client.create_model("digits")
        await client.update_model("digits", description="1", etag=old.etag)
        with pytest.raises(errors.Stale) as stale:
            await client.update_model("digits", description="2", etag=old.etag)
        assert stale.value.reason == "ETAG_MISMATCH"
        with pytest.raises(errors.Stale):
            await client.delete_model("digits", etag=old.etag)
        assert (await client.get_model("digits")).description == "1"

    async def test_a_new_version_does_not_take_the_etag_away(self, client: RegistryClient) -> None:
        made = await client.create_model("digits")
        await version(client)
        now = await client.get_model("digits")
        assert (now.latest_version, now.etag, now.update_time) == (1, made.etag, made.update_time)

    async def test_a_change_of_nothing_makes_no_event(self, client: RegistryClient) -> None:
        made = await client.create_model("digits", description="same")
        assert await client.update_model("digits", description="same") == made
        assert await client.revision() == 1

    async def test_force_takes_versions_and_aliases_along(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        await client.create_model("digits2")
        for model in ("digits", "digits2"):
            await version(client, model)
            await client.set_alias(model, "production", 1)
        with pytest.raises(errors.FailedPrecondition) as refused:
            await client.delete_model("digits")
        assert refused.value.reason == "MODEL_HAS_VERSIONS"
        await client.delete_model("digits", force=True)
        left = await listed(client)
        assert list(left.models) == ["models/digits2"]
        assert list(left.versions) == ["models/digits2/versions/1"]
        assert list(left.aliases) == ["models/digits2/aliases/production"]
        await client.create_model("digits")
        assert (await version(client)).version == 1


class TestVersions:
    async def test_a_version_keeps_everything_that_was_said(self, client: RegistryClient) -> None:
        spec = tensors_pb2.TensorSpec(name="image", dtype=tensors_pb2.DATA_TYPE_FP32, shape=[-1, 1, 28, 28])
        out = tensors_pb2.TensorSpec(name="scores", dtype=tensors_pb2.DATA_TYPE_BF16, shape=[])
        signature = pb.Signature(inputs=[spec], outputs=[out], labels=["zero", "eins ☝"])
        lineage = pb.Lineage(
            job="jobs/j1", dataset_digests=[DIGEST], code_revision="abc", traceparent=f"00-{'a' * 32}-{'b' * 16}-01"
        )
        await client.create_model("digits")
        made = await version(
            client,
            signature=signature,
            lineage=lineage,
            metrics={"accuracy": 0.98, "loss": 1e-300},
            tags={"stage": "test"},
            description="first",
        )
        assert (made.name, made.version, made.format, made.artifact) == (
            "models/digits/versions/1",
            1,
            "onnx",
            DIGEST,
        )
        assert (made.signature, made.lineage) == (signature, lineage)
        assert dict(made.metrics) == {"accuracy": 0.98, "loss": 1e-300}
        assert await client.get_version("digits", 1) == made
        bare = await version(client)
        assert not bare.HasField("signature")
        assert not bare.HasField("lineage")

    async def test_numbers_are_given_one_by_one_and_never_again(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        made = await asyncio.gather(*(version(client) for _ in range(12)))
        assert sorted(each.version for each in made) == list(range(1, 13))
        await client.delete_version("digits", 12)
        assert (await version(client)).version == 13
        with pytest.raises(errors.NotFound) as missing:
            await client.get_version("digits", 12)
        assert missing.value.reason == "VERSION_NOT_FOUND"

    async def test_only_tags_and_description_change(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        made = await version(client, tags={"a": "1"})
        changed = await client.update_version("digits", 1, tags={"b": "2"}, description="d", etag=made.etag)
        assert (dict(changed.tags), changed.description) == ({"b": "2"}, "d")
        with pytest.raises(errors.Stale):
            await client.update_version("digits", 1, tags={}, etag=made.etag)
        request = pb.UpdateModelVersionRequest(model_version=pb.ModelVersion(name=made.name, format="x"))
        request.update_mask.paths.append("format")
        with pytest.raises(errors.Invalid) as refused:
            await client._caller.unary(client._registry.UpdateModelVersion, request)
        assert refused.value.reason == "IMMUTABLE_FIELD"

    async def test_an_aliased_version_stays(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        made = await version(client)
        await client.set_alias("digits", "production", 1)
        with pytest.raises(errors.FailedPrecondition) as refused:
            await client.delete_version("digits", 1)
        assert refused.value.reason == "VERSION_HAS_ALIASES"
        await client.delete_alias("digits", "production")
        with pytest.raises(errors.Stale):
            await client.delete_version("digits", 1, etag='"999"')
        await client.delete_version("digits", 1, etag=made.etag)

    async def test_a_version_needs_its_model(self, client: RegistryClient) -> None:
        for call in (version(client), client.get_version("digits", 1), client.set_alias("digits", "a", 1)):
            with pytest.raises(errors.NotFound) as missing:
                await call
            assert missing.value.reason == "MODEL_NOT_FOUND"


class TestAliases:
    async def test_an_alias_moves_and_remembers(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        for _ in range(2):
            await version(client)
        first = await client.set_alias("digits", "production", 1, etag="*")
        assert (first.name, first.version, first.previous_version) == ("models/digits/aliases/production", 1, 0)
        second = await client.set_alias("digits", "production", 2, etag=first.etag)
        assert (second.version, second.previous_version) == (2, 1)
        assert await client.get_alias("digits", "production") == second
        assert (await client.get_version("digits", "production")).version == 2
        await client.set_alias("digits", "canary", 2)
        assert list((await client.get_version("digits", 2)).aliases) == ["canary", "production"]
        for etag in ("*", first.etag):
            with pytest.raises(errors.Stale):
                await client.set_alias("digits", "production", 1, etag=etag)
        with pytest.raises(errors.NotFound):
            await client.set_alias("digits", "production", 3)
        await client.delete_alias("digits", "production", etag=second.etag)
        with pytest.raises(errors.NotFound) as missing:
            await client.get_version("digits", "production")
        assert missing.value.reason == "ALIAS_NOT_FOUND"

    async def test_where_it_points_already_it_stays_untouched(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        for _ in range(2):
            await version(client)
        await client.set_alias("digits", "production", 1)
        moved = await client.set_alias("digits", "production", 2)
        assert await client.set_alias("digits", "production", 2) == moved
        assert moved.previous_version == 1
        assert await client.revision() == 5

    async def test_of_many_moves_with_one_etag_one_wins(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        for _ in range(17):
            await version(client)
        start = await client.set_alias("digits", "production", 17)
        moves = (client.set_alias("digits", "production", number, etag=start.etag) for number in range(1, 17))
        results = await asyncio.gather(*moves, return_exceptions=True)
        won = [result for result in results if isinstance(result, pb.Alias)]
        assert len(won) == 1
        assert sum(isinstance(result, errors.Stale) for result in results) == 15
        assert await client.get_alias("digits", "production") == won[0]
        assert won[0].previous_version == 17

    @pytest.mark.parametrize("alias", ["1", "007", "99999999999999999999"])
    async def test_an_alias_is_no_number(self, client: RegistryClient, alias: str) -> None:
        await client.create_model("digits")
        await version(client)
        with pytest.raises(errors.Invalid) as refused:
            await client.set_alias("digits", alias, 1)
        assert "name" in refused.value.violations

    async def test_a_model_has_a_hundred_at_most(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        await version(client)
        for number in range(100):
            await client.set_alias("digits", f"a{number}", 1)
        with pytest.raises(errors.Exhausted):
            await client.set_alias("digits", "b", 1)
        assert len((await client.get_version("digits", 1)).aliases) == 100


class TestRequestIds:
    async def test_a_repeated_request_gets_the_first_answer(self, client: RegistryClient) -> None:
        model = await client.create_model("digits", tags={"a": "1", "b": "2"}, request_id="r")
        made = await version(client, request_id="r", metrics={"x": 1.0})
        await client.update_version("digits", 1, description="later")
        assert await client.create_model("digits", tags={"b": "2", "a": "1"}, request_id="r") == model
        again = await asyncio.gather(*(version(client, request_id="r", metrics={"x": 1.0}) for _ in range(8)))
        assert all(each == made for each in again)
        assert await client.revision() == 3

    async def test_racing_repetitions_make_one_version(self, client: RegistryClient) -> None:
        await client.create_model("digits")
        made = await asyncio.gather(*(version(client, request_id="race") for _ in range(8)))
        assert {each.version for each in made} == {1}
        assert (await client.get_model("digits")).latest_version == 1

    async def test_an_id_stands_for_one_content(self, client: RegistryClient) -> None:
        await client.create_model("digits", request_id="r")
        await client.create_model("other", request_id="s")
        for call in (client.create_model("digits2", request_id="r"), client.create_model("digits", request_id="s")):
            with pytest.raises(errors.Invalid) as reused:
                await call
            assert reused.value.reason == "REQUEST_ID_REUSED"

    async def test_it_is_forgotten_with_its_event(self, kv: Kv) -> None:
        async with serve_registry(kv, event_retention=1) as client:
            await client.create_model("digits", request_id="r")
            for number in range(40):
                await client.update_model("digits", description=str(number))
            with pytest.raises(errors.AlreadyExists):
                await client.create_model("digits", request_id="r")
        assert (await kv.range("registry/requests/")).entries == ()


class TestLists:
    async def test_pages_come_in_order_and_completely(self, client: RegistryClient) -> None:
        names = sorted(["a", "a-b", "a.b", "a_b", "ab", "B", "0", *(f"m{number}" for number in range(8))])
        for name in reversed(names):
            await client.create_model(name)
        for size in (1, 2, 15, 16, 1000, 5000):
            found = [model.name.removeprefix("models/") async for model in client.list_models(page_size=size)]
            assert found == names
        for number in range(1, 13):
            assert (await version(client, "a")).version == number
        assert [v.version async for v in client.list_versions("a", page_size=5)] == list(range(1, 13))
        for model in ("a", "B"):
            if model == "B":
                await version(client, "B")
            for alias in ("x", "y-z", "y"):
                await client.set_alias(model, alias, 1)
        everywhere = [alias.name async for alias in client.list_aliases(page_size=2)]
        assert everywhere == sorted(everywhere)
        assert len(everywhere) == 6
        assert [a.name async for a in client.list_aliases("B")] == [n for n in everywhere if "models/B/" in n]

    async def test_a_list_and_the_watch_after_it_give_the_state(self, client: RegistryClient) -> None:
        for name in ("a", "b", "c"):
            await client.create_model(name)
        first = await client._caller.unary(client._registry.ListModels, pb.ListModelsRequest(page_size=2))
        assert first.revision == 3
        await client.update_model("a", description="changed")
        await client.delete_model("c")
        rest = pb.ListModelsRequest(page_size=2, page_token=first.next_page_token)
        second = await client._caller.unary(client._registry.ListModels, rest)
        known = {model.name: model for page in (first, second) for model in page.models}
        for event in await events_from(client, first.revision + 1, await client.revision()):
            if event.type == pb.EVENT_TYPE_DELETED:
                known.pop(event.model.name, None)
            else:
                known[event.model.name] = event.model
        assert known == (await listed(client)).models

    async def test_filters_choose(self, client: RegistryClient) -> None:
        for name, tags in {"x1": {"k": "v"}, "x2": {"k": "w", "a.b": 'q"'}, "y": {"k": "v"}}.items():
            await client.create_model(name, tags=tags)

        async def models(filter: str) -> list[str]:
            return [model.name[7:] async for model in client.list_models(filter=filter, page_size=1)]

        assert await models('tags.k = "v"') == ["x1", "y"]
        assert await models('name = "models/x*"') == ["x1", "x2"]
        assert await models('name = "models/x*" AND tags.k="v"') == ["x1"]
        assert await models('tags.a.b = "q\\""') == ["x2"]
        assert await models('name = "models/y"') == ["y"]
        for accuracy in (0.5, 0.9, None):
            metrics = {} if accuracy is None else {"accuracy": accuracy}
            await version(client, "y", metrics=metrics, lineage=pb.Lineage(job=f"jobs/j{accuracy}"))

        async def versions(filter: str) -> list[int]:
            return [each.version async for each in client.list_versions("y", filter=filter, page_size=1)]

        assert await versions("metrics.accuracy >= 0.9") == [2]
        assert await versions("metrics.accuracy != 0.9") == [1]
        assert await versions('lineage.job = "jobs/jNone" AND format = "onnx"') == [3]
        assert await versions(f'artifact = "{DIGEST}"') == [1, 2, 3]
        assert await versions('artifact = "other"') == []

    async def test_wrong_pages_and_filters_are_refused(self, client: RegistryClient) -> None:
        for name in ("a", "b"):
            await client.create_model(name)
        page = await client._caller.unary(client._registry.ListModels, pb.ListModelsRequest(page_size=1))
        wrong = [
            pb.ListModelsRequest(page_size=-1),
            pb.ListModelsRequest(page_token="x"),
            pb.ListModelsRequest(page_token=page.next_page_token, filter='tags.k = "v"'),
            pb.ListModelsRequest(filter="nonsense"),
        ]
        for request in wrong:
            with pytest.raises(errors.Invalid) as refused:
                await client._caller.unary(client._registry.ListModels, request)
            assert set(refused.value.violations) <= {"page_size", "page_token", "filter"}
        with pytest.raises(errors.NotFound):
            _ = [each async for each in client.list_versions("c")]

    async def test_large_records_come_in_short_pages(self, client: RegistryClient) -> None:
        tags = {f"t{number}": "é" * 1000 for number in range(64)}
        for number in range(20):
            await client.create_model(f"m{number:02}", tags=tags)
        found = [model async for model in client.list_models(page_size=1000)]
        assert [model.name for model in found] == [f"models/m{number:02}" for number in range(20)]
        assert replay(await events_from(client, 1, 20)).models == {model.name: model for model in found}
