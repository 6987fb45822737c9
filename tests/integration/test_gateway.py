"""The gateway over a real registry, artifact service and inference server."""

import asyncio
import base64
import hashlib
import json
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.support import onnxmodels
from tests.support.artifacts import content, sha256
from tests.support.gateway import Gateway, serve_gateway, serve_training
from tests.support.inference import Platform, Serving
from tests.support.venvs import ROOT, venv
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = [[1.5, 2.0], [3.0, 4.0]]
MIB = 1 << 20


@dataclass
class World:
    """The services, and clients of the three ports."""

    platform: Platform
    inference: Serving
    gateway: Gateway
    api: httpx.AsyncClient
    oip: httpx.AsyncClient
    tfs: httpx.AsyncClient


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with (
        Platform(tmp_path_factory.mktemp("platform")) as platform,
        platform.inference() as inference,
        serve_training() as (_, training_address),
    ):
        addresses = {
            "registry_address": platform.registry_address,
            "artifacts_address": platform.artifacts_address,
            "inference_address": inference.app.address,
            "training_address": training_address,
        }
        await platform.publish("double", onnxmodels.scale(2))
        await platform.publish("sums", onnxmodels.sums())
        await platform.publish("text", onnxmodels.identity(8, ("n",)))
        for model in ("double", "sums", "text"):
            await inference.serves(model)
        async with (
            serve_gateway(**addresses) as gateway,
            gateway.client() as api,
            gateway.client("oip") as oip,
            gateway.client("tfs") as tfs,
        ):
            yield World(platform, inference, gateway, api, oip, tfs)


async def test_models_versions_and_aliases(world: World) -> None:
    api = world.api
    model = {"name": "models/m", "tags": {"a": "b"}}
    made = await api.post("/api/v1/models?request_id=r", json=model)
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/models/m")
    assert (await api.post("/api/v1/models?request_id=r", json=model)).json() == made.json()
    assert (await api.post("/api/v1/models", json=model)).status_code == 409
    version = {"format": "onnx", "artifact": "0" * 64, "metrics": {"accuracy": 0.5}}
    first = await api.post("/api/v1/models/m/versions", json=version)
    assert first.headers["location"] == "/api/v1/models/m/versions/1"
    await api.post("/api/v1/models/m/versions", json={**version, "metrics": {"accuracy": 0.9}})
    good = await api.get("/api/v1/models/m/versions", params={"filter": "metrics.accuracy >= 0.9"})
    assert [found["version"] for found in good.json()["model_versions"]] == ["2"]
    page = (await api.get("/api/v1/models/m/versions?page_size=1")).json()
    rest = (await api.get("/api/v1/models/m/versions", params={"page_token": page["next_page_token"]})).json()
    assert [found["version"] for found in page["model_versions"] + rest["model_versions"]] == ["1", "2"]
    alias = await api.put("/api/v1/models/m/aliases/best", json={"version": 1})
    assert alias.json()["version"] == "1"
    assert (await api.get("/api/v1/models/m/versions/best")).json()["version"] == "1"
    names = [found["name"] for found in (await api.get("/api/v1/models/-/aliases")).json()["aliases"]]
    assert "models/m/aliases/best" in names
    assert (await api.delete("/api/v1/models/m/versions/1")).status_code == 409
    assert (await api.delete("/api/v1/models/m/aliases/best")).status_code == 204
    assert (await api.get("/api/v1/models/m/aliases/best")).status_code == 404
    assert (await api.delete("/api/v1/models/m")).status_code == 409
    assert (await api.delete("/api/v1/models/m?force=true")).status_code == 204


async def test_changes_depend_on_etags(world: World) -> None:
    api = world.api
    made = await api.post("/api/v1/models", json={"name": "models/e", "description": "old", "tags": {"a": "b"}})
    old = made.headers["etag"]
    changed = await api.patch("/api/v1/models/e", json={"description": "new"}, headers={"If-Match": old})
    assert (changed.json()["description"], changed.json()["tags"]) == ("new", {"a": "b"})
    assert changed.headers["etag"] != old
    stale = await api.patch("/api/v1/models/e", json={"description": "newer"}, headers={"If-Match": old})
    assert (stale.status_code, stale.json()["reason"]) == (412, "ETAG_MISMATCH")
    in_body = await api.patch("/api/v1/models/e", json={"description": "newer", "etag": old})
    assert (in_body.status_code, in_body.json()["reason"]) == (409, "ETAG_MISMATCH")
    cleared = await api.patch("/api/v1/models/e", json={"tags": {}, "description": None})
    assert (cleared.json()["tags"], cleared.json()["description"]) == ({}, "")
    masked = await api.patch("/api/v1/models/e?update_mask=tags", json={"tags": {"c": "d"}, "description": "ignored"})
    assert (masked.json()["tags"], masked.json()["description"]) == ({"c": "d"}, "")
    fixed = await api.patch("/api/v1/models/e", json={"latest_version": 3})
    assert (fixed.status_code, fixed.json()["reason"]) == (400, "IMMUTABLE_FIELD")
    other = await api.patch("/api/v1/models/e", json={"name": "models/f", "description": "x"})
    assert other.status_code == 400
    for bad in ("*", 'W/"1"', '"1", "2"', "1"):
        refused = await api.delete("/api/v1/models/e", headers={"If-Match": bad})
        assert (refused.status_code, refused.json()["violations"][0]["field"]) == (400, "If-Match")
    assert (await api.delete("/api/v1/models/e", headers={"If-Match": old})).status_code == 412
    now = (await api.get("/api/v1/models/e")).headers["etag"]
    assert (await api.delete("/api/v1/models/e", headers={"If-Match": now})).status_code == 204


async def test_an_alias_that_must_be_new(world: World) -> None:
    path = "/api/v1/models/double/aliases/fresh"
    fresh = {"If-None-Match": "*"}
    assert (await world.api.put(path, json={"version": 1}, headers=fresh)).status_code == 200
    assert (await world.api.put(path, json={"version": 1}, headers=fresh)).status_code == 412
    assert (await world.api.put(path, json={"version": 99})).status_code in (400, 404, 409)
    assert (await world.api.delete(path)).status_code == 204


async def test_the_event_log_is_followed_and_resumed(world: World) -> None:
    await world.api.post("/api/v1/models", json={"name": "models/watched"})
    async with world.api.stream("GET", "/api/v1/events?from_revision=1&model=models/watched") as stream:
        lines = stream.aiter_lines()
        first = await event(lines)
        assert first["data"]["events"][0]["model"]["name"] == "models/watched"
        await world.api.patch("/api/v1/models/watched", json={"description": "x"})
        second = await event(lines)
        assert second["data"]["events"][0]["type"] == "EVENT_TYPE_UPDATED"
    headers = {"Last-Event-ID": first["id"]}
    async with world.api.stream("GET", "/api/v1/events?model=models/watched", headers=headers) as stream:
        assert await event(stream.aiter_lines()) == second


async def event(lines: AsyncIterator[str]) -> dict[str, Any]:
    """The next server-sent event with something in it."""
    found: dict[str, Any] = {}
    async with asyncio.timeout(10):
        async for line in lines:
            key, _, value = line.partition(": ")
            if key == "data":
                found["data"] = json.loads(value)
            elif line:
                found[key] = value
            elif found.get("data", {}).get("events"):
                return found
            else:
                found = {}
    raise AssertionError("the stream ended")


async def test_instances_and_status(world: World) -> None:
    async def services() -> bool:
        found = (await world.api.get("/api/v1/instances")).json()["instances"]
        return {"inference", "gateway"} <= {instance["service"] for instance in found}

    await until(services)
    only = (await world.api.get("/api/v1/instances?service=gateway")).json()["instances"]
    assert [instance["address"] for instance in only] == [world.gateway.app.address]
    status = (await world.api.get("/api/v1/status")).json()
    assert {found["name"]: found["status"] for found in status["services"]}["registry"] == "SERVING"


async def test_a_blob_goes_in_and_comes_out(world: World) -> None:
    data = content(3 * MIB + 17)
    path = f"/api/v1/blobs/{sha256(data)}"
    made = await world.api.put(path, content=data)
    assert (made.status_code, made.json()["size"]) == (201, str(len(data)))
    again = await world.api.put(path, content=data)
    assert (again.status_code, again.json()) == (200, made.json())
    whole = await world.api.get(path)
    assert whole.content == data
    assert whole.headers["etag"] == f'"{sha256(data)}"'
    assert whole.headers["content-disposition"].startswith("attachment")
    part = await world.api.get(path, headers={"Range": f"bytes={MIB - 3}-{2 * MIB}"})
    assert (part.status_code, part.content) == (206, data[MIB - 3 : 2 * MIB + 1])
    assert part.headers["content-range"] == f"bytes {MIB - 3}-{2 * MIB}/{len(data)}"
    assert (await world.api.get(path, headers={"Range": "bytes=-5"})).content == data[-5:]
    assert (await world.api.get(path, headers={"Range": f"bytes={len(data)}-"})).status_code == 416
    assert (await world.api.get(path, headers={"If-None-Match": whole.headers["etag"]})).status_code == 304
    changed = await world.api.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (changed.status_code, len(changed.content)) == (200, len(data))
    head = await world.api.head(path)
    assert (head.headers["content-length"], head.content) == (str(len(data)), b"")
    listed = (await world.api.get("/api/v1/blobs")).json()["blobs"]
    assert sha256(data) in [blob["sha256"] for blob in listed]
    assert (await world.api.delete(path)).status_code == 204
    assert (await world.api.get(path)).status_code == 404


@pytest.mark.parametrize("size", [1000, 3 * MIB])
async def test_damaged_bytes_are_never_taken_for_whole(world: World, size: int) -> None:
    data = content(size, seed=size)
    path = f"/api/v1/blobs/{sha256(data)}"
    await world.api.put(path, content=data)
    (file,) = [found for found in (world.platform.root / "artifacts").rglob(f"*{sha256(data)}*") if found.is_file()]
    file.chmod(0o600)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        answer = await world.api.get(path)
    except httpx.RemoteProtocolError:
        assert size > MIB  # it had begun
    else:
        assert (answer.status_code, answer.json()["reason"]) == (500, "BLOB_DAMAGED")
    await world.api.delete(path)


async def test_an_empty_blob(world: World) -> None:
    path = f"/api/v1/blobs/{sha256(b'')}"
    assert (await world.api.put(path, content=b"")).status_code == 201
    assert (await world.api.get(path)).content == b""


async def test_bytes_that_are_not_what_was_announced(world: World) -> None:
    wrong = await world.api.put(f"/api/v1/blobs/{'0' * 64}", content=b"abc")
    assert (wrong.status_code, wrong.json()["reason"]) == (400, "DIGEST_MISMATCH")
    assert (await world.api.get(f"/api/v1/blobs/{'0' * 64}")).status_code == 404
    bad = await world.api.put("/api/v1/blobs/abc", content=b"abc")
    assert (bad.status_code, bad.json()["reason"]) == (400, "INVALID_DIGEST")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"abc"

    unknown = await world.api.put(f"/api/v1/blobs/{sha256(b'abc')}", content=chunks())
    assert (unknown.status_code, unknown.json()["reason"]) == (411, "LENGTH_REQUIRED")
    ranged = await world.api.put(
        f"/api/v1/blobs/{sha256(b'abc')}", content=b"abc", headers={"Content-Range": "bytes 0-2/3"}
    )
    assert ranged.status_code == 400


async def test_an_upload_is_resumed(world: World) -> None:
    data = content(2 * MIB, seed=5)
    made = await world.api.post("/api/v1/uploads", json={"sha256": sha256(data), "size": len(data)})
    path = made.headers["location"]
    assert made.status_code == 201
    # A client that breaks off leaves what arrived.
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.ports["management"])
    head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    writer.write(head + data[: MIB + 4096])
    await writer.drain()

    async def offset() -> int:
        return int((await world.api.get(path)).json()["offset"])

    await until(offset)
    writer.close()
    del reader
    begun = await until(offset)
    # What is sent twice is skipped.
    start = begun - 100
    headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}

    async def resumed() -> bool:
        answer = await world.api.put(path, content=data[start:], headers=headers)
        return answer.status_code == 200 and answer.json()["offset"] == str(len(data))

    await until(resumed)
    done = await world.api.post(f"{path}:finish")
    assert done.json()["sha256"] == sha256(data)
    assert (await world.api.get(f"/api/v1/blobs/{sha256(data)}")).content == data


async def test_uploads_are_given_up(world: World) -> None:
    made = await world.api.post("/api/v1/uploads", json={"sha256": "1" * 64, "size": 5})
    path = made.headers["location"]
    gap = await world.api.put(path, content=b"ab", headers={"Content-Range": "bytes 3-4/5"})
    assert gap.status_code == 400
    assert (await world.api.delete(path)).status_code == 204
    assert (await world.api.get(path)).status_code == 404


async def test_artifacts_and_their_references(world: World) -> None:
    data = content(1000, seed=9)
    await world.api.put(f"/api/v1/blobs/{sha256(data)}", content=data)
    artifact = {"kind": "notes", "files": [{"path": "a/b.txt", "sha256": sha256(data)}], "labels": {"k": "v"}}
    made = await world.api.post("/api/v1/artifacts?reference=models/m", json=artifact)
    assert made.status_code == 201
    path = made.headers["location"]
    assert path == f"/api/v1/artifacts/{made.json()['digest']}"
    assert made.json()["references"] == ["models/m"]
    kinds = (await world.api.get("/api/v1/artifacts?kind=notes")).json()["artifacts"]
    assert [found["digest"] for found in kinds] == [made.json()["digest"]]
    assert (await world.api.delete(path)).status_code == 409
    more = await world.api.post(f"{path}:addReference", json={"reference": "jobs/j"})
    assert more.json()["references"] == ["jobs/j", "models/m"]
    for reference in ("jobs/j", "models/m"):
        await world.api.post(f"{path}:removeReference", json={"reference": reference})
    assert (await world.api.delete(path)).status_code == 204
    assert (await world.api.get(path)).status_code == 404


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": X, **changes}


async def test_oip_metadata_and_health(world: World) -> None:
    server = (await world.oip.get("/v2")).json()
    assert server["name"] == "tidemill"
    assert "binary_tensor_data" in server["extensions"]
    assert (await world.oip.get("/v2/health/live")).json() == {"live": True, "ready": True}
    assert (await world.oip.get("/v2/health/ready")).json() == {"live": True, "ready": True}
    for path in ("/v2/models/double", "/v2/models/double/versions/1", "/v2/models/double/versions/champion"):
        found = (await world.oip.get(path)).json()
        assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        assert (await world.oip.get(f"{path}/ready")).json() == {"name": "double", "ready": True}
    missing = await world.oip.get("/v2/models/nothing/ready")
    assert (missing.status_code, missing.json()["ready"]) == (400, False)


@pytest.mark.parametrize("path", ["", "/versions/1", "/versions/champion"])
async def test_oip_infer(world: World, path: str) -> None:
    answer = await world.oip.post(f"/v2/models/double{path}/infer", json={"id": "7", "inputs": [tensor()]})
    assert answer.json() == {
        "model_name": "double",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [3.0, 4.0, 6.0, 8.0]}],
    }


async def test_oip_binary_both_ways_and_raw(world: World) -> None:
    raw = np.array(X, "<f4").tobytes()
    given = tensor(parameters={"binary_data_size": len(raw)})
    del given["data"]
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = await world.oip.post("/v2/models/double/infer", content=head + raw, headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    output = json.loads(answer.content[:length])["outputs"][0]
    assert output["parameters"] == {"binary_data_size": len(raw)}
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], "<f4").reshape(2, 2), 2 * np.array(X, "f4"))
    whole = await world.oip.post(
        "/v2/models/double/infer", content=raw, headers={"Inference-Header-Content-Length": "0"}
    )
    length = int(whole.headers["Inference-Header-Content-Length"])
    assert whole.content[length:] == answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]


OIP_ERRORS: dict[str, tuple[str, Any, int, str]] = {
    "unknown model": ("nothing", {"inputs": [tensor()]}, 404, "Request for unknown model: 'nothing' is not found"),
    "unknown version": (
        "double/versions/99",
        {"inputs": [tensor()]},
        404,
        "Request for unknown model: 'double' version 99 is not found",
    ),
    "unknown alias": (
        "double/versions/zz",
        {"inputs": [tensor()]},
        400,
        "failed to get model version from specified version string 'zz' (details: stol), version should be an "
        "integral value > 0",
    ),
    "no inputs": ("sums", {"inputs": []}, 400, "expected 2 inputs but got 0 inputs for model 'sums'. Got input(s) []"),
    "unknown input": (
        "double",
        {"inputs": [tensor(name="z")]},
        400,
        "unexpected inference input 'z' for model 'double'",
    ),
    "wrong type": ("double", {"inputs": [tensor(datatype="INT32", data=[1, 2, 3, 4])]}, 400, "data-type is 'INT32'"),
    "wrong shape": ("double", {"inputs": [tensor(shape=[4, 1])]}, 400, "unexpected shape for input 'x'"),
    "half precision": ("double", {"inputs": [tensor(datatype="FP16")]}, 400, "FP16 travels as binary data only"),
    "unknown output": (
        "double",
        {"inputs": [tensor()], "outputs": [{"name": "z"}]},
        400,
        "unexpected inference output 'z' for model 'double'",
    ),
    "shared memory": (
        "double",
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16})]},
        501,
        "shared memory is not enabled on this server",
    ),
}


@pytest.mark.parametrize("name", OIP_ERRORS)
async def test_oip_errors(world: World, name: str) -> None:
    model, body, status, text = OIP_ERRORS[name]
    answer = await world.oip.post(f"/v2/models/{model}/infer", json=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    assert text in answer.json()["error"]


async def test_oip_reads_models_and_generates(world: World) -> None:
    get, post = world.oip.get, world.oip.post
    assert {"double", "sums", "text"} <= set((await get("/v2/models")).json()["models"])
    entries = (await post("/v2/repository/index", json={"ready": True})).json()
    assert {"name": "double", "version": "1", "state": "READY", "reason": ""} in entries
    config = (await get("/v2/models/double/config")).json()
    assert [(tensor["name"], tensor["data_type"]) for tensor in config["input"]] == [("x", "TYPE_FP32")]
    answer = {"model_name": "text", "model_version": "1", "y": ["a", "é"]}
    assert (await post("/v2/models/text/generate", json={"x": ["a", "é"]})).json() == answer
    stream = await post("/v2/models/text/generate_stream", json={"x": ["a", "é"]})
    assert (stream.status_code, json.loads(stream.text.removeprefix("data: "))) == (200, answer)
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}
    stream = await post("/v2/models/text/infer_stream", json={"id": "1", "inputs": [tensor]})
    assert stream.status_code == 200
    found = json.loads(stream.text.removeprefix("data: "))
    assert (found["model_name"], found["id"], found["outputs"]) == ("text", "1", [{**tensor, "name": "y"}])
    for path in ("generate", "generate_stream"):
        refused = await post(f"/v2/models/text/{path}", json={})
        assert (refused.status_code, refused.json()["error"][:31]) == (400, "expected 1 inputs but got 0 inp")
    (statistics,) = (await get("/v2/models/text/stats")).json()["model_stats"]
    assert statistics["inference_count"] >= 2
    assert statistics["inference_stats"]["success"]["ns"] > 0
    assert (await post("/v2/cudasharedmemory/unregister")).status_code == 200
    assert (await get("/v2/systemsharedmemory/status")).json() == []


async def test_oip_refuses_what_is_no_request(world: World) -> None:
    for content_, status in ((b"", 400), (b"{", 400), (b"[1]", 400), (b'{"a":NaN}', 400), (b"[" * 10**6, 400)):
        answer = await world.oip.post("/v2/models/double/infer", content=content_)
        assert (answer.status_code, set(answer.json())) == (status, {"error"})
    for encoding, status in (("gzip", 400), ("deflate", 400), ("br", 415), ("gzip, gzip", 415)):
        headers = {"Content-Encoding": encoding}
        assert (await world.oip.post("/v2/models/double/infer", content=b"x", headers=headers)).status_code == status
    assert (await world.oip.get("/v2/models/double/infer")).status_code == 405
    assert (await world.oip.get("/v2/nothing")).json() == {"error": "there is no such path"}
    for value in ("-1", "x", "9" * 30):
        headers = {"Inference-Header-Content-Length": value}
        assert (await world.oip.post("/v2/models/double/infer", content=b"{}", headers=headers)).status_code == 400


@pytest.mark.timeout(600)
async def test_an_unmodified_tritonclient(world: World) -> None:
    python = await asyncio.to_thread(venv, "tritonclient")
    script = ROOT / "tests" / "support" / "triton_http.py"
    process = await asyncio.create_subprocess_exec(
        str(python), str(script), f"127.0.0.1:{world.gateway.ports['oip']}", stdout=PIPE, stderr=PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    assert json.loads(out) == {
        "live": True,
        "ready": True,
        "model": True,
        "version": True,
        "missing": False,
        "server": "tidemill",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [[[3.0, 4.0], [6.0, 8.0]]] * 4,
        "text": [["a", "é"]] * 2,
        "refusal": ["404", "Request for unknown model: 'nothing' is not found"],
        "async": True,
    }


async def test_tfs_predict_rows_and_columns(world: World) -> None:
    for path in ("double", "double/versions/1", "double/labels/champion"):
        rows = await world.tfs.post(f"/v1/models/{path}:predict", json={"instances": X})
        assert rows.json() == {"predictions": [[3.0, 4.0], [6.0, 8.0]]}
        columns = await world.tfs.post(f"/v1/models/{path}:predict", json={"inputs": {"x": X}})
        assert columns.json() == {"outputs": [[3.0, 4.0], [6.0, 8.0]]}
    instances = [{"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]}]
    several = (await world.tfs.post("/V1/Models/sums:predict", json={"instances": instances})).json()
    assert several == {"predictions": [{"total": [5, 5, 5, 5], "difference": [-3, -1, 1, 3]}]}
    text = {"instances": ["a", {"b64": base64.b64encode("é".encode()).decode()}]}
    assert (await world.tfs.post("/v1/models/text:predict", json=text)).json() == {"predictions": ["a", "é"]}


async def test_tfs_status(world: World) -> None:
    for path in ("double", "double/versions/1", "double/labels/champion"):
        (found,) = (await world.tfs.get(f"/v1/models/{path}")).json()["model_version_status"]
        assert found == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


TFS_ERRORS: dict[str, tuple[str, str, int, str]] = {
    "unknown model": ("POST", "/v1/models/nothing:predict", 404, "Servable not found for request: Latest(nothing)"),
    "unknown version": (
        "POST",
        "/v1/models/double/versions/7:predict",
        404,
        "Servable not found for request: Specific(double, 7)",
    ),
    "unknown label": ("POST", "/v1/models/double/labels/zz:predict", 400, "Unrecognized servable version label: zz"),
    "no such method": ("POST", "/v1/models/double:guess", 400, "Malformed request: POST /v1/models/double:guess"),
    "wrong verb": ("GET", "/v1/models/double:predict", 400, "Malformed request: GET /v1/models/double:predict"),
    "version of letters": (
        "GET",
        "/v1/models/double/versions/a",
        400,
        "Malformed request: GET /v1/models/double/versions/a",
    ),
    "no model": ("GET", "/v1/models", 400, "Missing model name in request."),
    "status of an unknown model": ("GET", "/v1/models/nothing", 404, "Could not find any versions of model nothing"),
    "status of an unknown version": (
        "GET",
        "/v1/models/double/versions/7",
        404,
        "Could not find version 7 of model double",
    ),
    "status of an unknown label": (
        "GET",
        "/v1/models/double/labels/zz",
        400,
        "Unrecognized servable version label: zz",
    ),
}


@pytest.mark.parametrize("name", TFS_ERRORS)
async def test_tfs_errors(world: World, name: str) -> None:
    verb, path, status, text = TFS_ERRORS[name]
    answer = await world.tfs.request(verb, path, json={"instances": X})
    assert (answer.status_code, answer.json()) == (status, {"error": text})


async def test_tfs_follows_a_model_that_changes_what_it_takes(world: World) -> None:
    body = {"instances": [[1.5, 2.0]]}
    await world.platform.publish("changing", onnxmodels.scale(2))
    await world.inference.serves("changing")
    assert (await world.tfs.post("/v1/models/changing:predict", json=body)).json() == {"predictions": [[3.0, 4.0]]}
    number = await world.platform.publish("changing", onnxmodels.scale(3, kind=11))
    await world.inference.serves("changing", str(number))

    async def moved() -> bool:
        answer = await world.tfs.post("/v1/models/changing:predict", json=body)
        assert answer.status_code == 200, answer.text
        return bool(answer.json() == {"predictions": [[4.5, 6.0]]})

    await until(moved)


@pytest.mark.parametrize(
    ("port", "served"),
    [
        ("management", {"/v2", "/v1/models/double", "/api/v1/models", "/docs"}),
        ("oip", {"/v2"}),
        ("tfs", {"/v1/models/double"}),
    ],
)
async def test_each_port_serves_its_own(world: World, port: str, served: set[str]) -> None:
    async with world.gateway.client(port) as http:
        for path in ("/v2", "/v1/models/double", "/api/v1/models", "/docs"):
            answer = await http.get(path)
            assert answer.status_code == (200 if path in served else 404), path
            if answer.status_code == 404:
                assert answer.content == (b"" if port == "tfs" else b'{"error":"there is no such path"}')


NASTY_NAMES = ["double", "1", "0" * 64, "-", "a..b", "é", "%00", "%2e%2e%2f", "x" * 300, "\u202e"]
NASTY_BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"version": 1e400, "spec": [], "inputs": [null], "instances": [{}], "signature_name": {}}',
    b'{"name": {"a": 1}, "files": [[]], "size": "x", "sha256": 3, "inputs": {"x": null}}',
    b'{"name": "models/\\ud800", "kind": "\\u0000", "tags": {"": ""}, "instances": [[[[]]]], "id": "\\ud800"}',
    b"\xff\xfe\x00",
    b'{"a":' * 20 + b"1" + b"}" * 20,
]


async def test_no_route_answers_nonsense_with_a_fault(world: World, caplog: pytest.LogCaptureFixture) -> None:
    document = (await world.api.get("/openapi.json")).json()
    asked = 0
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            bodies = NASTY_BODIES if "requestBody" in operation else [b""]
            names = NASTY_NAMES if "{" in path else [""]
            for index in range(max(len(names), len(bodies))):
                name, body = names[index % len(names)], bodies[index % len(bodies)]
                url = re.sub(r"\{\w+\}", (name if "%" in name else quote(name)).replace("\\", ""), path)
                headers = {"Content-Type": "application/json", "X-Request-Timeout": "5"}
                async with world.api.stream(verb, url, content=body, headers=headers) as answer:
                    assert answer.status_code not in (500, 502), (verb, url, body)
                    if answer.headers.get("content-type", "").startswith("application/"):
                        text = (await answer.aread()).decode("utf-8", "replace")
                        assert "Traceback" not in text
                asked += 1
    assert asked > 300
    assert not [record for record in caplog.records if record.message == "unexpected error"]
    assert (await world.api.get("/api/v1/status")).status_code == 200


async def test_memory_is_not_held_by_uploads(world: World) -> None:
    size, piece = 96 * MIB, bytes(MIB)
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(piece)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield piece

    before = resident()
    headers = {"Content-Length": str(size)}
    path = f"/api/v1/blobs/{digest.hexdigest()}"
    made = await world.api.put(path, content=chunks(), headers=headers)
    assert made.status_code == 201
    total = 0
    async with world.api.stream("GET", path) as answer:
        async for part in answer.aiter_bytes():
            total += len(part)
    assert total == size
    assert resident() - before < size // 2
    await world.api.delete(path)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
