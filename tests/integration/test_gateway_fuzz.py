"""Mutated requests over all routes of the Open Inference Protocol: no answer is a fault of the gateway."""

import random
from typing import Any

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.httpmutation import Request, requests
from tests.support.scripted_inference import serve_inference
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Site

REQUESTS = 2000
SEED = 20_260_101


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
            for number, request in enumerate(requests(dice, routes, REQUESTS)):
                status = await asked(http, request)
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, (number, request)
            assert (await http.get("/v2/health/live")).status_code == 200
            # The requests were of all kinds, not all of one that is refused at the door.
            assert min(seen[200], seen[400]) > REQUESTS / 10
            assert {404, 405, 415} <= set(seen)


async def asked(http: httpx.AsyncClient, request: Request) -> int:
    """The status of the answer, which is whole, and JSON if it is an error."""
    found = await http.request(request.verb, request.path, content=request.body, headers=request.headers)
    if found.status_code >= 400 and request.verb != "HEAD":
        assert set(found.json()) >= {"error"}
    return found.status_code
