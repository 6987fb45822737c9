"""Mutated requests over all routes of the Open Inference Protocol: no answer is a fault of the gateway."""

import gzip
import json
import random
import zlib
from typing import Any

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_inference import serve_inference
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Site

REQUESTS = 2000
SEED = 20_260_101
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, "", "x", "é", "\ud800", "\0", "../x",
    "x" * 300, [], [[]], {}, {"a": {}}, [None], [1, "x"], [[1], [2, 3]], "QUJD", {"b64": "QUJD"}, {"b64": 3},
    [2**60, 16], [0], [-1],
]  # fmt: skip
PACK: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
NAMES = [
    "m",
    "x",
    "..",
    "%2e%2e",
    "m%20",
    "é",
    "stats",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "a" * 200,
    "%ff",
    "m:n",
]
DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": "7",
        "parameters": {"sequence_id": 1, "binary_data_output": True, "priority": 2},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4], "parameters": {}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": False, "classification": 1}}],
    },
    {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}}]},
    {"text": "hello", "n": 3, "parameters": {"a": 1}},
    {"parameters": {"config": "{}", "file:1/model.onnx": "QUJD", "unload_dependents": True}},
    {"key": "/k", "offset": 0, "byte_size": 8, "raw_handle": {"b64": "QUJD"}, "device_id": 0},
    {"trace_level": ["OFF"], "trace_rate": "1", "log_info": True, "log_verbose_level": 1, "ready": True},
]


def mutated(dice: random.Random, value: Any, chance: float = 0.15) -> Any:
    """`value` with some of what is in it replaced, removed or doubled."""
    if dice.random() < chance:
        return dice.choice(VALUES)
    if isinstance(value, dict):
        kept = {key: mutated(dice, item, chance) for key, item in value.items() if dice.random() > chance / 3}
        return {
            **kept,
            **({dice.choice(["x", "inputs", "parameters", "\ud800"]): 1} if dice.random() < chance / 3 else {}),
        }
    if isinstance(value, list):
        found = [mutated(dice, item, chance) for item in value]
        return found * (2 if dice.random() < chance / 2 else 1)
    return value


def body(dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body and its headers."""
    data = json.dumps(mutated(dice, dice.choice(DOCUMENTS))).encode()
    headers: dict[str, str] = {}
    if dice.random() < 0.3:
        length = dice.choice([str(len(data)), str(len(data) + 1), "0", "-1", "x", "9" * 25, ""])
        headers["Inference-Header-Content-Length"] = length
        data += dice.randbytes(dice.choice([0, 4, 8, 16]))
    if dice.random() < 0.3:
        place = dice.randrange(len(data) + 1)
        data = dice.choice([data[:place], data[:place] + dice.randbytes(3) + data[place:], b"[" * place, b""])
    if dice.random() < 0.3:
        encoding = dice.choice(["gzip", "deflate", "br", "gzip, gzip", "identity"])
        headers["Content-Encoding"] = encoding
        if dice.random() < 0.7:
            data = PACK.get(encoding, bytes)(data)
    if dice.random() < 0.3:
        headers["Accept-Encoding"] = dice.choice(["gzip", "deflate;q=0.5, gzip;q=x", "*;q=", ";;,", "identity;q=0"])
    return data, headers


def answer(dice: random.Random) -> pb.ModelInferResponse:
    """An answer with all kinds of outputs, NaN among them."""
    made: Any = pb.ModelInferResponse(model_name="m", model_version="1")
    for datatype, raw in (("FP32", b"\0\0\xc0\x7f"), ("INT8", b"\1"), ("BYTES", b"\1\0\0\0\xff"), ("BF16", b"\0\0")):
        if dice.random() < 0.5:
            made.outputs.add(name=datatype, datatype=datatype, shape=[1])
            made.raw_output_contents.append(raw)
    found: pb.ModelInferResponse = made
    return found


@pytest.mark.timeout(120)
async def test_no_request_is_answered_by_a_fault() -> None:
    dice = random.Random(SEED)
    async with serve_inference() as (inference, address):
        metadata = pb.ModelMetadataResponse(name="m")
        metadata.inputs.add(name="text", datatype="BYTES", shape=[-1, 1])
        metadata.inputs.add(name="n", datatype="INT32", shape=[1])
        inference.answers = {
            "ModelMetadata": metadata,
            "ModelInfer": lambda _: answer(dice),
            "ServerLive": pb.ServerLiveResponse(live=True),
            "ServerReady": pb.ServerReadyResponse(ready=True),
        }
        inference.streamed = [pb.ModelStreamInferResponse(infer_response=answer(dice))]
        settings = {"inference_address": address, "max_body_mib": 1, "max_buffered_mib": 2}
        async with serve_gateway(**settings) as gateway, gateway.client("oip") as http:
            server = gateway.app.server
            assert isinstance(server, HttpServer)
            site = server.main
            assert isinstance(site, Site)
            (front,) = [front for front in site.fronts if front.owns("/v2")]
            routes = [(route.verb, route.template) for route in front.table.routes]
            assert len(routes) > 40
            seen: dict[int, int] = {}
            for number in range(REQUESTS):
                verb, template = routes[number % len(routes)]
                if dice.random() < 0.05:
                    verb = dice.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
                path = template
                for name in ("model", "version", "repository", "region"):
                    path = path.replace(f"{{{name}}}", "m" if dice.random() < 0.7 else dice.choice(NAMES))
                data, headers = body(dice)
                status = await asked(http, verb, path, data, headers)
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, (number, verb, path, data, headers)
            assert (await http.get("/v2/health/live")).status_code == 200
            # The requests were of all kinds, not all of one that is refused at the door.
            assert min(seen[200], seen[400]) > REQUESTS / 10
            assert {404, 405, 415} <= set(seen)


async def asked(http: httpx.AsyncClient, verb: str, path: str, data: bytes, headers: dict[str, str]) -> int:
    """The status of the answer, which is whole, and JSON if it is an error."""
    found = await http.request(verb, path, content=data if verb != "GET" else b"", headers=headers)
    if found.status_code >= 400 and verb != "HEAD":
        assert set(found.json()) >= {"error"}
    return found.status_code
