"""Inference over a real registry and a real artifact service: what is pointed at is served, whatever breaks."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from tests.support import onnxmodels, torchmodels
from tests.support.artifacts import sha256
from tests.support.inference import Platform, Serving
from tests.support.wait import until
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.errors import NotFound, TidemillError, Unavailable
from tidemill.telemetry import attributes

X = np.array([[1, 2], [3, 4]], np.float32)
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with Platform(tmp_path) as running:
        yield running


async def factor(serving: Serving, version: str = "") -> tuple[str, float]:
    """The version that the model `scale` answered with, and what it multiplies by."""
    result = await serving.client.infer("scale", {"x": X}, version=version)
    ratio = result.outputs["y"] / X
    assert (ratio == ratio[0, 0]).all()
    return result.model_version, float(ratio[0, 0])


def cached(platform: Platform, data: bytes) -> Path:
    """Where the inference server keeps a blob."""
    return platform.root / "inference" / "blobs" / sha256(data)


async def test_serves_what_an_alias_points_at(platform: Platform) -> None:
    async with platform.inference() as serving:
        client = serving.client
        with pytest.raises(NotFound):
            await client.infer("double", {"x": X})
        assert await platform.publish("double", onnxmodels.scale(2)) == 1
        await serving.serves("double")
        result = await client.infer("double", {"x": X}, id="7")
        assert (result.model_name, result.model_version, result.id) == ("double", "1", "7")
        np.testing.assert_array_equal(result.outputs["y"], 2 * X)
        for version in ("1", "champion"):
            assert (await client.infer("double", {"x": X}, version=version)).model_version == "1"


async def test_versions_without_an_alias_are_not_loaded(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1), alias="")
    async with platform.inference() as serving:
        await until(serving.states)
        assert await serving.states() == {"scale/": ""}
        with pytest.raises(NotFound, match="has no available versions"):
            await factor(serving)
        await platform.registry.set_alias("scale", "canary", 1)
        await serving.serves("scale")
        assert await factor(serving) == ("1", 1.0)


async def test_several_aliases_of_one_model(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    await platform.publish("scale", onnxmodels.scale(2), alias="canary")
    async with platform.inference() as serving:
        await serving.serves("scale", "champion")
        await serving.serves("scale", "canary")
        assert await factor(serving) == ("1", 1.0)
        assert await factor(serving, "canary") == ("2", 2.0)
        metadata = await serving.client.metadata("scale", "canary")
        assert list(metadata.versions) == ["1", "2"]
        await platform.registry.delete_alias("scale", "champion")
        await until(lambda: factor_is(serving, ("2", 2.0)))


async def factor_is(serving: Serving, expected: tuple[str, float]) -> bool:
    try:
        return await factor(serving) == expected
    except (NotFound, Unavailable):
        return False


async def test_swap_under_load_fails_no_call_and_mixes_no_versions(platform: Platform) -> None:
    last = 6
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        seen: set[str] = set()
        stop = asyncio.Event()

        async def caller() -> int:
            calls = 0
            while not stop.is_set():
                version, ratio = await factor(serving)
                assert ratio == float(version)
                seen.add(version)
                calls += 1
            return calls

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        try:
            for number in range(2, last + 1):
                assert await platform.publish("scale", onnxmodels.scale(number)) == number
                await until(lambda n=number: str(n) in seen)  # type: ignore[misc]
        finally:
            stop.set()
        assert sum(await asyncio.gather(*callers)) > 0
        assert seen == {str(number) for number in range(1, last + 1)}
        await until(lambda: serving_only(serving, {f"scale/{last}": "READY"}))


async def serving_only(serving: Serving, states: Mapping[str, str]) -> bool:
    return await serving.states() == states


OTHER_SIGNATURE = pb.Signature(
    inputs=[tensors_pb2.TensorSpec(name="x", dtype=tensors_pb2.DATA_TYPE_FP32, shape=[-1, 3])],
    outputs=[tensors_pb2.TensorSpec(name="y", dtype=tensors_pb2.DATA_TYPE_FP32, shape=[-1, 3])],
)


@pytest.mark.parametrize(
    ("files", "version", "reason"),
    [
        ({"model.onnx": b"\x80\x04K*." * 99}, {}, "not an ONNX model"),
        ({"model.onnx": onnxmodels.external("subgraph")}, {}, "external data"),
        ({"model.onnx": onnxmodels.external("function"), "w.bin": b"w"}, {}, "external data"),
        ({"model.bin": onnxmodels.scale(2)}, {}, "model.onnx"),
        ({"model.onnx": onnxmodels.scale(2)}, {"format": "pickle"}, "unknown runtime 'pickle'"),
        ({"model.onnx": onnxmodels.scale(2)}, {"format": "base"}, "unknown runtime 'base'"),
        ({"model.onnx": onnxmodels.scale(2)}, {"signature": OTHER_SIGNATURE}, "not what the registry declares"),
        ({"model.onnx": onnxmodels.misfit()}, {}, "does not run on zeros"),
    ],
)
async def test_bad_versions_are_never_served(
    platform: Platform, files: dict[str, bytes], version: dict[str, Any], reason: str
) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        assert await platform.publish("scale", files, **version) == 2
        assert reason in await serving.reason("scale", 2)
        assert await factor(serving) == ("1", 1.0)
        assert await factor(serving, "champion") == ("1", 1.0)
        with pytest.raises(Unavailable, match="version 2 is not at ready state"):
            await factor(serving, "2")
        assert not await serving.client.model_ready("scale", "2")
        assert await platform.publish("scale", onnxmodels.scale(3)) == 3
        await until(lambda: factor_is(serving, ("3", 3.0)))


async def test_only_jobs_may_make_versions_that_hold_code_and_only_where_that_is_set(platform: Platform) -> None:
    data = torchmodels.exported(torchmodels.Scale(), (torchmodels.rows(2, 2),), ({0: torchmodels.BATCH},))
    config = b'backend: "pytorch" max_batch_size: 8'
    made: dict[str, Any] = {"format": "torchexport", "lineage": pb.Lineage(job="jobs/j")}
    await platform.publish("scale", {"model.pt2": data}, **made)
    await platform.publish("configured", {"model.pt2": data, "config.pbtxt": config}, **made)
    await platform.publish("someones", {"model.pt2": data}, format="torchexport")
    await platform.publish("program", {"model.py": b"raise SystemExit"}, **{**made, "format": "python"})
    x = np.ones((1, 2), np.float32)
    async with platform.inference() as serving:
        for name in ("scale", "someones"):
            assert "trusted sources only" in await serving.reason(name, 1)
        for name in ("configured", "program"):
            assert "own repository only" in await serving.reason(name, 1)
    async with platform.inference(trust_jobs=True) as serving:
        for name in ("scale", "configured"):
            await serving.serves(name)
            assert (await serving.client.infer(name, {"x": x})).outputs["OUTPUT__0"].tolist() == [[2, 2]]
        assert "trusted sources only" in await serving.reason("someones", 1)
        assert "own repository only" in await serving.reason("program", 1)
    await platform.stop("registry", "artifacts")
    async with platform.inference(trust_jobs=True) as serving:
        await serving.serves("scale")


async def test_bit_flip_in_the_artifact_store_is_never_served(platform: Platform) -> None:
    good, bad = onnxmodels.scale(1), onnxmodels.scale(2)
    await platform.publish("scale", good)
    artifact = await platform.artifacts.create_artifact("model", {"model.onnx": bad})
    stored = [path for path in (platform.root / "artifacts").rglob(f"*{sha256(bad)}*") if path.is_file()]
    assert stored
    for path in stored:
        flip(path)
    async with platform.inference() as serving:
        await serving.serves("scale")
        await platform.register("scale", artifact.digest)
        await serving.reason("scale", 2)
        assert await factor(serving) == ("1", 1.0)
        assert not cached(platform, bad).exists()


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


async def test_bit_flip_in_the_cache_is_never_served(platform: Platform) -> None:
    data = onnxmodels.scale(1)
    await platform.publish("scale", data)
    async with platform.inference() as serving:
        await serving.serves("scale")
    flip(cached(platform, data))
    await platform.stop("registry", "artifacts")
    async with platform.inference() as serving:
        await serving.reason("scale", 1)
        with pytest.raises(Unavailable):
            await factor(serving)
        assert not cached(platform, data).exists()
        await platform.start("artifacts")
        await serving.serves("scale")
        assert await factor(serving) == ("1", 1.0)
    assert cached(platform, data).read_bytes() == data


async def test_serves_from_its_cache_while_everything_else_is_away(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        await platform.stop("registry", "artifacts")
        assert await factor(serving) == ("1", 1.0)
    async with platform.inference() as serving:
        assert await serving.client.live()
        assert await serving.client.ready()
        await serving.serves("scale", "champion")
        assert await factor(serving) == ("1", 1.0)
        await until(lambda: serving.app.ready)
        await platform.start("registry", "artifacts")
        await platform.publish("scale", onnxmodels.scale(2))
        await until(lambda: factor_is(serving, ("2", 2.0)))


async def test_moves_that_it_missed_while_it_was_away(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    await platform.publish("gone", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        await serving.serves("gone")
    await platform.publish("scale", onnxmodels.scale(2))
    await platform.registry.delete_model("gone", force=True)
    async with platform.inference() as serving:
        await until(lambda: serving_only(serving, {"scale/2": "READY"}))


async def test_damaged_memory_of_what_was_served_is_forgotten(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
    (platform.root / "inference" / "desired.json").write_text('{"aliases": [')
    async with platform.inference() as serving:
        await serving.serves("scale")


async def test_waits_for_an_artifact_service_that_is_away(platform: Platform) -> None:
    artifact = await platform.artifacts.create_artifact("model", {"model.onnx": onnxmodels.scale(1)})
    await platform.stop("artifacts")
    async with platform.inference() as serving:
        await platform.register("scale", artifact.digest)
        await serving.reason("scale", 1)
        await platform.start("artifacts")
        await serving.serves("scale")


async def test_model_made_anew_under_the_same_name(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        await platform.registry.delete_model("scale", force=True)
        assert await platform.publish("scale", onnxmodels.scale(5)) == 1
        await until(lambda: factor_is(serving, ("1", 5.0)))


async def test_large_model_is_refused_before_it_is_fetched(platform: Platform) -> None:
    data = onnxmodels.scale(1)
    await platform.publish("scale", data)
    async with platform.inference(max_model_bytes=len(data) - 1) as serving:
        assert str(len(data)) in await serving.reason("scale", 1)
        assert not cached(platform, data).exists()


async def test_cache_keeps_what_is_served_and_drops_the_rest(platform: Platform) -> None:
    first, second = onnxmodels.scale(1), onnxmodels.scale(2)
    await platform.publish("scale", first)
    async with platform.inference(cache_bytes=0) as serving:
        await serving.serves("scale")
        await platform.publish("scale", second)
        await until(lambda: factor_is(serving, ("2", 2.0)))
        await until(lambda: not cached(platform, first).exists())
        assert cached(platform, second).exists()


async def test_announces_itself_until_it_stops(platform: Platform) -> None:
    async with platform.inference() as serving:
        found = await until(lambda: platform.registry.list_instances("inference"))
        assert [instance.address for instance in found] == [serving.app.address]
    assert await platform.registry.list_instances("inference") == []


async def test_trace_of_a_version_runs_to_its_first_prediction(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1), lineage=pb.Lineage(traceparent=TRACEPARENT))
    async with platform.inference(trace_sample=1.0) as serving:
        await serving.serves("scale")
        await factor(serving)
        await factor(serving)
        spans = serving.spans.get_finished_spans()
    by_name: dict[str, list[Any]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    versions = {
        name: [span for span in by_name[name] if trace.format_trace_id(span.context.trace_id) == TRACE]
        for name in (attributes.SPAN_LOAD_MODEL, attributes.SPAN_WARM_UP, attributes.SPAN_FIRST_PREDICTION)
    }
    assert {name: len(found) for name, found in versions.items()} == dict.fromkeys(versions, 1)
    requests = by_name["inference.GRPCInferenceService/ModelInfer"]
    executions = by_name[attributes.SPAN_EXECUTE]
    assert [span.parent.span_id for span in executions] == [span.context.span_id for span in requests]
    (link,) = versions[attributes.SPAN_FIRST_PREDICTION][0].links
    assert link.context.span_id == requests[0].context.span_id
    assert TRACE not in {trace.format_trace_id(span.context.trace_id) for span in requests}


async def test_metrics(platform: Platform) -> None:
    await platform.publish("scale", onnxmodels.scale(1))
    async with platform.inference() as serving:
        await serving.serves("scale")
        await factor(serving)
        with pytest.raises(TidemillError):
            await serving.client.infer("scale", {})
        registry = serving.app.telemetry.registry
        labels = {"model": "scale", "version": "1"}
        assert registry.get_sample_value("tidemill_models_loaded") == 1
        assert registry.get_sample_value("tidemill_model_loads_total", {"outcome": "success"}) == 1
        assert registry.get_sample_value("tidemill_inferences_total", {**labels, "outcome": "success"}) == 1
        assert registry.get_sample_value("tidemill_inference_seconds_count", labels) == 1
        await platform.publish("scale", onnxmodels.scale(2))
        await until(lambda: serving_only(serving, {"scale/2": "READY"}))
        assert registry.get_sample_value("tidemill_inference_seconds_count", labels) is None
