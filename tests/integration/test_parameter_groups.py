"""Groups are created, listed, checked and deleted; shards announce themselves."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.registry import settings
from tests.support.serve import serving
from tests.support.shards import GROUP, Shards, shards
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.registry.v1.registry_pb2 import Instance
from tidemill.clients.registry import RegistryClient
from tidemill.registry.app import build

ELEMENTS = 2500


async def test_groups_are_created_once_listed_and_deleted() -> None:
    async with shards(2) as cluster:
        first = await cluster.group(3000, optimizer="adam", workers=2)
        again = await cluster.group(3000, optimizer="adam", workers=2)
        assert [g.create_time for g in first] == [g.create_time for g in again]
        assert first[0].state == pb.Group.STATE_EMPTY
        assert first[0].optimizer.parameters["beta2"] == 0.999
        for optimizer, workers, parameters in (("sgd", 2, {}), ("adam", 3, {}), ("adam", 2, {"beta1": 0.5})):
            with pytest.raises(errors.AlreadyExists):
                await cluster.group(3000, optimizer=optimizer, workers=workers, parameters=parameters)
        await cluster.group(10, name="groups/a")
        assert [g.name async for g in cluster.admin.list_groups()] == ["groups/a", GROUP]
        await cluster.admin.delete_group(GROUP)
        with pytest.raises(errors.NotFound):
            await cluster.admin.get_group(GROUP)
        with pytest.raises(errors.NotFound):
            await cluster.admin.delete_group(GROUP)
        with cluster.client() as client, pytest.raises(errors.NotFound):
            client.pull()


async def test_groups_are_listed_in_pages() -> None:
    async with shards() as cluster:
        for number in range(5):
            await cluster.group(3, name=f"groups/{number}")
        stub, caller = cluster.admin._stubs[0], cluster.admin._callers[0]
        names, token = [], ""
        for size in (2, 2, 1):
            page = await caller.unary(stub.ListGroups, pb.ListGroupsRequest(page_size=2, page_token=token))
            assert len(page.groups) == size
            names += [group.name for group in page.groups]
            token = page.next_page_token
        assert token == ""
        assert names == [f"groups/{number}" for number in range(5)]


async def test_the_optimizers_are_told() -> None:
    async with shards() as cluster:
        found = {o.name: o for o in await cluster.admin.list_optimizers()}
        assert set(found) == {"sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "rmsprop", "lamb"}
        beta = next(p for p in found["adam"].parameters if p.name == "beta1")
        assert (beta.type, beta.default_json) == ("float", "0.9")
        assert "Kingma" in found["adam"].description
        checked = await cluster.admin.check_optimizer("adamw", {"learning_rate": 0.5, "fused": True})
        assert checked.parameters["learning_rate"] == 0.5
        assert checked.parameters["fused"] is True
        assert checked.parameters["weight_decay"] == 0.01
        for name, parameters in (("lion", {}), ("sgd", {"momentum": 1.0}), ("sgd", {"learning_rate": -1.0})):
            with pytest.raises(errors.Invalid):
                await cluster.admin.check_optimizer(name, parameters)


async def test_limits_of_a_shard_are_kept() -> None:
    # Plain SGD with one worker: three versions and one gradient of 4 bytes an element.
    async with shards(max_bytes=16 * 3000, max_groups=2) as cluster:
        with pytest.raises(errors.Exhausted) as much:
            await cluster.group(2**24, name="groups/huge", optimizer="adam")
        assert much.value.reason == "TOO_MANY_PARAMETERS"
        await cluster.group(2000, name="groups/a")
        with pytest.raises(errors.Exhausted) as full:
            await cluster.group(1001, name="groups/b")
        assert full.value.metadata["taken"] == "32000"
        assert "16016 bytes" in str(full.value)
        assert "48000" in str(full.value)
        await cluster.group(1000, name="groups/c")
        with pytest.raises(errors.Exhausted) as many:
            await cluster.group(1, name="groups/d")
        assert many.value.reason == "TOO_MANY_GROUPS"
        await cluster.admin.delete_group("groups/a")
        await cluster.group(1001, name="groups/b")


async def test_clients_of_the_wrong_shards_are_told() -> None:
    async with shards(2) as cluster:
        await cluster.group(3000)
        swapped = Shards(cluster.addresses[::-1], cluster.admin, cluster.apps)
        half = Shards(cluster.addresses[:1], cluster.admin, cluster.apps)
        for wrong in (swapped, half):
            with wrong.client() as client, pytest.raises(errors.FailedPrecondition) as told:
                client.pull()
            assert told.value.reason == "WRONG_SHARDS"


BAD_BLOCKS: dict[str, tuple[list[tuple[int, int, int]], int, str]] = {
    "none": ([], 1, "group.blocks"),
    "not all at the end": ([(0, 0, 2048)], 1, "group.blocks"),
    "not all at the start": ([(1, 2048, ELEMENTS - 2048)], 1, "group.blocks[0].offset"),
    "a gap": ([(0, 0, 1024), (1, 2048, ELEMENTS - 2048)], 1, "group.blocks[1].offset"),
    "the wrong offset": ([(0, 452, 2048)], 1, "group.blocks[0].offset"),
    "behind the end": ([(3, ELEMENTS, 1)], 2, "group.blocks[0].offset"),
    "overlap": ([(0, 0, 2048), (1, 2047, 10)], 2, "group.blocks[1].offset"),
    "out of order": ([(1, 0, 1024), (0, 1024, 1024)], 2, "group.blocks[1].index"),
}
"""Blocks as (index, offset, elements), the number of shards, and the field that is wrong."""


def group_of(blocks: list[tuple[int, int, int]], shards: int) -> pb.Group:
    group = pb.Group(name=GROUP, workers=1, shards=shards, optimizer=pb.Optimizer(name="sgd"))
    group.tensors.add(name="w", dtype=11, shape=[ELEMENTS])
    for index, offset, elements in blocks:
        group.blocks.add(index=index, offset=offset, elements=elements)
    return group


@pytest.mark.parametrize("case", list(BAD_BLOCKS))
async def test_blocks_that_do_not_make_the_vector_are_refused(case: str) -> None:
    blocks, count, field = BAD_BLOCKS[case]
    async with shards() as cluster:
        caller, stub = cluster.admin._callers[0], cluster.admin._stubs[0]
        with pytest.raises(errors.Invalid) as refused:
            await caller.unary(stub.CreateGroup, pb.CreateGroupRequest(group=group_of(blocks, count)))
        assert list(refused.value.violations) == [field]


@pytest.mark.parametrize("blocks", [[], [(0, 0, 1024)], [(1, 1024, 1024)], [(0, 0, 1024), (2, 2048, ELEMENTS - 2048)]])
async def test_one_of_several_shards_has_any_of_the_blocks(blocks: list[tuple[int, int, int]]) -> None:
    async with shards() as cluster:
        caller, stub = cluster.admin._callers[0], cluster.admin._stubs[0]
        made = await caller.unary(stub.CreateGroup, pb.CreateGroupRequest(group=group_of(blocks, 3)))
        assert [(b.index, b.offset, b.elements) for b in made.blocks] == blocks


BAD_GROUPS: dict[str, Callable[[pb.Group], Any]] = {
    "name": lambda g: setattr(g, "name", "groups/.."),
    "no collection": lambda g: setattr(g, "name", "g"),
    "no workers": lambda g: setattr(g, "workers", 0),
    "many workers": lambda g: setattr(g, "workers", 65),
    "no shards": lambda g: setattr(g, "shards", 0),
    "shard too high": lambda g: setattr(g, "shard", 1),
    "no tensors": lambda g: g.ClearField("tensors"),
    "same name": lambda g: g.tensors.append(g.tensors[0]),
    "empty name": lambda g: setattr(g.tensors[0], "name", ""),
    "other type": lambda g: setattr(g.tensors[0], "dtype", 13),
    "negative shape": lambda g: g.tensors[0].shape.append(-1),
    "huge shape": lambda g: g.tensors[0].shape.extend([2**31, 2**31, 2**31]),
    "zero elements": lambda g: g.tensors[0].shape.append(0),
    "block too large": lambda g: setattr(g.blocks[0], "elements", 2**18 + 1),
    "block of nothing": lambda g: setattr(g.blocks[0], "elements", 0),
    "block behind the end": lambda g: setattr(g.blocks[-1], "offset", ELEMENTS),
    "blocks that overlap": lambda g: setattr(g.blocks[1], "offset", 1),
    "blocks out of order": lambda g: setattr(g.blocks[1], "index", 0),
    "negative block": lambda g: setattr(g.blocks[0], "index", -1),
    "negative offset": lambda g: setattr(g.blocks[0], "offset", -1),
    "no optimizer": lambda g: g.ClearField("optimizer"),
    "unknown optimizer": lambda g: setattr(g.optimizer, "name", "../sgd"),
    "hyperparameter of a wrong type": lambda g: g.optimizer.parameters.update({"learning_rate": [1.0]}),
    "hyperparameter that is no number": lambda g: g.optimizer.parameters.update({"learning_rate": float("nan")}),
}


@pytest.mark.parametrize("case", list(BAD_GROUPS))
async def test_bad_groups_are_not_created(case: str) -> None:
    async with shards() as cluster:
        group = group_of([(0, 0, 2048), (1, 2048, ELEMENTS - 2048)], 1)
        BAD_GROUPS[case](group)
        caller, stub = cluster.admin._callers[0], cluster.admin._stubs[0]
        with pytest.raises(errors.Invalid):
            await caller.unary(stub.CreateGroup, pb.CreateGroupRequest(group=group))
        assert [g async for g in cluster.admin.list_groups()] == []


async def test_a_shard_announces_itself_and_withdraws() -> None:
    async with serving(build(settings())) as address, RegistryClient(address) as registry:
        async with shards(2, registry_address=address) as cluster:
            instances = await until(lambda: announced(registry, 2))
            assert [(i.labels["shard"], i.address) for i in instances] == [
                (str(shard), own) for shard, own in enumerate(cluster.addresses)
            ]
        assert await announced(registry, 0) == []


async def announced(registry: RegistryClient, count: int) -> list[Instance] | None:
    found = await registry.list_instances("parameters")
    return found if len(found) == count else None
