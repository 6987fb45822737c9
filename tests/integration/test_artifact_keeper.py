"""References of model versions follow the registry, whoever makes and deletes the versions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import Raw, config, content, raw_calls
from tests.support.clock import ManualClock
from tests.support.ports import free_ports
from tests.support.registry import settings
from tests.support.serve import serving
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.app import build
from tidemill.clients.registry import RegistryClient
from tidemill.registry.app import build as build_registry

GRACE = 600.0
FIRST, SECOND = "models/m/versions/1", "models/m/versions/2"


@dataclass
class Place:
    """Where a registry and an artifact service live, however often they start again."""

    folder: Path
    port: int

    @asynccontextmanager
    async def registry(self, store: str = "registry") -> AsyncIterator[RegistryClient]:
        own = settings(port=self.port, store=f"sqlite:///{self.folder / store}.db", heartbeat=0.5)
        async with serving(build_registry(own)) as address, RegistryClient(address) as client:

            async def reached() -> bool:  # connections to this address may still pause after it was away
                try:
                    return await client.revision() >= 0
                except errors.Unavailable:
                    return False

            await until(reached)
            yield client

    @asynccontextmanager
    async def artifacts(self, clock: ManualClock | None = None) -> AsyncIterator[Raw]:
        own = config(
            self.folder / "artifacts",
            registry_address=f"127.0.0.1:{self.port}",
            reference_grace_seconds=GRACE,
        )
        async with serving(build(own, clock=clock)) as address, raw_calls(address) as raw:
            yield raw


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, free_ports(1)[0])


async def artifact(raw: Raw, seed: int = 0, reference: str = "") -> str:
    blob = await raw.upload(content(100, seed))
    wanted = pb.Artifact(kind="model", files=[pb.File(path="model.onnx", sha256=blob.sha256)])
    made = await raw.call("CreateArtifact", pb.CreateArtifactRequest(artifact=wanted, reference=reference))
    return str(made.digest)


async def references(raw: Raw, digest: str) -> list[str]:
    return list((await raw.call("GetArtifact", pb.GetArtifactRequest(name=f"artifacts/{digest}"))).references)


async def refer(raw: Raw, digest: str, reference: str) -> None:
    await raw.call("AddReference", pb.AddReferenceRequest(name=f"artifacts/{digest}", reference=reference))


async def holds(raw: Raw, digest: str, *wanted: str) -> None:
    """Wait until exactly these are the references of an artifact."""

    async def reached() -> bool:
        return await references(raw, digest) == list(wanted)

    await until(reached, what=f"references {wanted}")


async def held(raw: Raw, digest: str, wanted: str) -> bool:
    return wanted in await references(raw, digest)


async def version(registry: RegistryClient, digest: str, **more: Any) -> str:
    return (await registry.create_version("m", format="onnx", artifact=digest, **more)).name


async def test_a_version_protects_its_files_until_it_is_deleted(place: Place) -> None:
    async with place.registry() as registry, place.artifacts() as raw:
        one, other = await artifact(raw), await artifact(raw, 1)
        await registry.create_model("m")
        assert await version(registry, one) == FIRST
        await version(registry, one)
        await holds(raw, one, FIRST, SECOND)
        with pytest.raises(errors.FailedPrecondition) as refused:
            await raw.call("DeleteArtifact", pb.DeleteArtifactRequest(name=f"artifacts/{one}"))
        assert refused.value.reason == "ARTIFACT_REFERENCED"
        await refer(raw, other, FIRST)
        await refer(raw, other, "jobs/j")
        await registry.delete_version("m", 1)
        await holds(raw, one, SECOND)
        await holds(raw, other, "jobs/j")
        await registry.delete_version("m", 2)
        await holds(raw, one)
        await raw.call("DeleteArtifact", pb.DeleteArtifactRequest(name=f"artifacts/{one}"))


async def test_a_deleted_model_takes_all_references_of_its_versions_along(place: Place) -> None:
    async with place.registry() as registry, place.artifacts() as raw:
        one, other = await artifact(raw), await artifact(raw, 1)
        for model in ("m", "m2"):
            await registry.create_model(model)
        await version(registry, one)
        await version(registry, other)
        await registry.create_version("m2", format="onnx", artifact=one)
        await holds(raw, one, FIRST, "models/m2/versions/1")
        await holds(raw, other, SECOND)
        await registry.delete_model("m", force=True)
        await holds(raw, one, "models/m2/versions/1")
        await holds(raw, other)


async def test_a_model_that_comes_back_protects_its_new_files_only(place: Place) -> None:
    async with place.registry() as registry, place.artifacts() as raw:
        old, new = await artifact(raw), await artifact(raw, 1)
        await registry.create_model("m")
        await version(registry, old)
        await holds(raw, old, FIRST)
        await registry.delete_model("m", force=True)
        await registry.create_model("m")
        name = await version(registry, new)
        await refer(raw, new, name)
        await holds(raw, new, name)
        await holds(raw, old)
        assert await references(raw, new) == [name]


async def test_a_version_without_stored_files_is_no_obstacle(place: Place) -> None:
    async with place.registry() as registry, place.artifacts() as raw:
        await registry.create_model("m")
        await version(registry, "0" * 64)
        digest = await artifact(raw)
        await version(registry, digest)
        await holds(raw, digest, SECOND)


async def test_versions_made_while_nobody_followed_are_protected_later(place: Place) -> None:
    async with place.artifacts() as raw:  # there is no registry yet
        digest = await artifact(raw)
    async with place.registry() as registry:
        await registry.create_model("m")
        await version(registry, digest)
        async with place.artifacts() as raw:
            await holds(raw, digest, FIRST)


async def test_a_registry_that_goes_and_comes_is_followed_again(place: Place) -> None:
    async with place.artifacts() as raw:
        digest = await artifact(raw)
        async with place.registry() as registry:
            await registry.create_model("m")
            await version(registry, digest)
            await holds(raw, digest, FIRST)
        async with place.registry() as registry:
            await version(registry, digest)
            await holds(raw, digest, FIRST, SECOND)
            await registry.delete_version("m", 1)
            await holds(raw, digest, SECOND)


async def test_a_registry_that_was_set_back_is_listed_again(place: Place) -> None:
    async with place.artifacts() as raw:
        one, other = await artifact(raw), await artifact(raw, 1)
        async with place.registry() as registry:
            await registry.create_model("m")
            for _ in range(5):
                last = await version(registry, one)
            await until(lambda: held(raw, one, last))
        async with place.registry("earlier") as registry:
            await registry.create_model("m")
            await version(registry, other)
            await holds(raw, other, FIRST)
        assert last in await references(raw, one)  # its grace has only begun


async def test_references_of_versions_deleted_while_nobody_followed_go_after_the_grace(place: Place) -> None:
    async with place.registry() as registry:
        async with place.artifacts() as raw:
            digest = await artifact(raw, reference="jobs/j")
            await registry.create_model("m")
            await version(registry, digest)
            await version(registry, digest)
            await holds(raw, digest, "jobs/j", FIRST, SECOND)
        await registry.delete_version("m", 1)
        clock = ManualClock()
        async with place.artifacts(clock) as raw:
            await version(registry, digest)
            await holds(raw, digest, "jobs/j", FIRST, SECOND, "models/m/versions/3")
            await clock.advance(GRACE - 1)
            assert FIRST in await references(raw, digest)
            await clock.advance(1)
            await holds(raw, digest, "jobs/j", SECOND, "models/m/versions/3")


async def test_a_reference_may_come_before_its_version(place: Place) -> None:
    clock = ManualClock()
    async with place.registry() as registry, place.artifacts(clock) as raw:
        digest, orphan, fence = await artifact(raw), await artifact(raw, 1), await artifact(raw, 2)
        await registry.create_model("m")
        await version(registry, fence)
        await holds(raw, fence, FIRST)
        await refer(raw, digest, SECOND)
        await refer(raw, orphan, "models/other/versions/1")
        await refer(raw, orphan, "models/other/versions/01")  # no version is called so
        await clock.advance(GRACE)  # seen for the first time: both stay
        await clock.until_sleeping(3)
        assert await version(registry, digest) == SECOND
        await holds(raw, digest, SECOND)

        async def gone() -> bool:
            await clock.advance(GRACE / 2)
            return await references(raw, orphan) == ["models/other/versions/01"]

        await until(gone)
        assert await references(raw, digest) == [SECOND]


async def test_a_registry_without_a_history_is_no_reason_to_remove_anything(place: Place) -> None:
    clock = ManualClock()
    async with place.artifacts(clock) as raw:
        digest = await artifact(raw, reference=FIRST)
        async with place.registry("empty") as registry:

            async def announced() -> bool:
                await clock.advance(1)
                return bool(await registry.list_instances("artifacts"))

            await until(announced)
            for _ in range(20):
                await clock.advance(GRACE)
                await clock.until_sleeping(3)
                assert await references(raw, digest) == [FIRST]
            await registry.create_model("other")

            async def gone() -> bool:
                await clock.advance(GRACE)
                return await references(raw, digest) == []

            await until(gone)
