"""Groups whose snapshots are artifacts, restored on any number of shards."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.artifacts import config as artifact_settings
from tests.support.serve import serving
from tests.support.shards import Shards, first_values, shards, together, train
from tidemill.artifacts.app import build as build_artifacts
from tidemill.clients import snapshots
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.errors import DataLoss, FailedPrecondition
from tidemill.tensors.blocks import Array

TENSORS = [("a", (700, 400)), ("b", (300, 1000)), ("c", ())]
ELEMENTS = 580_001
"""Three blocks."""


@pytest.fixture
async def artifacts(tmp_path: Path) -> AsyncIterator[ArtifactsClient]:
    async with (
        serving(build_artifacts(artifact_settings(tmp_path / "artifacts"))) as address,
        ArtifactsClient(address) as client,
    ):
        yield client


async def begin(cluster: Shards, optimizer: str) -> None:
    await cluster.group(TENSORS, optimizer=optimizer, workers=2, schedule="cosine", schedule_parameters={"steps": 20})


async def steps(cluster: Shards, count: range) -> Array:
    """Parameters after two workers have made these steps."""
    with cluster.client() as one, cluster.client() as two:
        return (await together(lambda: train(one, 0, count), lambda: train(two, 1, count)))[0]


async def load(cluster: Shards) -> None:
    with cluster.client() as client:
        await together(lambda: client.load(first_values(ELEMENTS)))


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
async def test_kept_and_restored_on_other_shards_the_group_goes_on_as_it_was(
    artifacts: ArtifactsClient, optimizer: str
) -> None:
    async with shards(1) as alone:
        await begin(alone, optimizer)
        await load(alone)
        expected = await steps(alone, range(6))
    async with shards(2) as before:
        await begin(before, optimizer)
        await load(before)
        await steps(before, range(3))
        definition = snapshots.definition_of((await before.admin.get_group("groups/g"))[0])
        with before.client() as client:
            (state,) = await together(client.snapshot)
        digest = await snapshots.save(artifacts, state, definition, facts={"step": 3}, reference="jobs/j")
    assert (state.version, state.steps, state.clocks) == (3, 3, (3, 3))
    async with shards(3) as after:
        await begin(after, optimizer)
        definition = snapshots.definition_of((await after.admin.get_group("groups/g"))[0])
        found = await snapshots.load(artifacts, digest, definition)
        assert found.facts == {"step": 3}
        with after.client() as client:
            await together(lambda: client.restore(found.state))
            await together(lambda: client.restore(found.state))  # by a worker that takes the place of a dead one
            assert client.versions() == [3, 3, 3]
        got = await steps(after, range(3, 6))
    assert got.tobytes() == expected.tobytes()


async def test_what_does_not_fit_or_is_damaged_is_refused(artifacts: ArtifactsClient, tmp_path: Path) -> None:
    async with shards(1) as cluster:
        await begin(cluster, "adam")
        await load(cluster)
        definition = snapshots.definition_of((await cluster.admin.get_group("groups/g"))[0])
        with cluster.client() as client:
            (state,) = await together(client.snapshot)
        digest = await snapshots.save(artifacts, state, definition)
        await cluster.group(TENSORS, optimizer="sgd", workers=2, name="groups/other")
        other = snapshots.definition_of((await cluster.admin.get_group("groups/other"))[0])
    with pytest.raises(FailedPrecondition) as refused:
        await snapshots.load(artifacts, digest, other)
    assert "of another optimizer" in refused.value.message
    blobs = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    assert blobs, "the weights lie in the store"
    for blob in blobs:
        whole = bytearray(blob.read_bytes())
        whole[len(whole) // 2] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(whole)
    with pytest.raises(DataLoss):
        await snapshots.load(artifacts, digest, definition)
