"""`generate` and `generate_stream` over a scripted inference service."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.gateway import serve_gateway
from tests.support.scripted_inference import ScriptedInference, serve_inference
from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = {"text_input": "hi", "temperature": 0.5}


def response(text: str) -> pb.ModelInferResponse:
    raw = len(text.encode()).to_bytes(4, "little") + text.encode()
    made: Any = pb.ModelInferResponse(model_name="m", model_version="1", raw_output_contents=[raw])
    made.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    found: pb.ModelInferResponse = made
    return found


def streamed(text: str) -> pb.ModelStreamInferResponse:
    return pb.ModelStreamInferResponse(infer_response=response(text))


def event(text: str) -> dict[str, str]:
    return {"model_name": "m", "model_version": "1", "text_output": text}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[tuple[ScriptedInference, httpx.AsyncClient]]:
    async with (
        serve_inference() as (inference, address),
        serve_gateway(inference_address=address) as gateway,
        gateway.client("oip") as http,
    ):
        yield inference, http


@pytest.fixture
def inference(running: tuple[ScriptedInference, httpx.AsyncClient]) -> ScriptedInference:
    scripted = running[0]
    scripted.reset()
    metadata = pb.ModelMetadataResponse(name="m")
    metadata.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    scripted.answers = {"ModelMetadata": metadata, "ModelInfer": response("hello")}
    return scripted


@pytest.fixture
def http(running: tuple[ScriptedInference, httpx.AsyncClient]) -> httpx.AsyncClient:
    return running[1]


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n") if answer.text else ():
        assert block.startswith("data: ")
        found.append(json.loads(block.removeprefix("data: ")))
    return found


DECOUPLED = errors.Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")


@pytest.mark.parametrize("path", ["/v2/models/m/generate", "/v2/models/m/versions/1/generate"])
async def test_one_answer(inference: ScriptedInference, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=ASK)
    assert (answer.status_code, answer.json()) == (200, event("hello"))
    sent = inference.requests[-1]
    assert list(sent.raw_input_contents) == [b"\2\0\0\0hi"]
    assert sent.parameters["temperature"].double_param == 0.5


async def test_a_decoupled_model_may_give_one_answer(inference: ScriptedInference, http: httpx.AsyncClient) -> None:
    inference.answers["ModelInfer"] = DECOUPLED
    last = pb.ModelStreamInferResponse()
    last.infer_response.parameters["triton_final_response"].bool_param = True
    inference.streamed = [streamed("one"), last]
    assert (await http.post("/v2/models/m/generate", json=ASK)).json() == event("one")


@pytest.mark.parametrize("count", [0, 2, 5])
async def test_not_exactly_one_answer_is_an_error(
    inference: ScriptedInference, http: httpx.AsyncClient, count: int
) -> None:
    inference.answers["ModelInfer"] = DECOUPLED
    inference.streamed = [streamed("x")] * count
    answer = await http.post("/v2/models/m/generate", json=ASK)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert "generate expects model to produce exactly 1 response" in answer.json()["error"]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_all_answers_are_events(inference: ScriptedInference, http: httpx.AsyncClient, count: int) -> None:
    inference.streamed = [streamed(str(number)) for number in range(count)]
    answer = await http.post("/v2/models/m/generate_stream", json=ASK)
    assert answer.status_code == 200
    assert events(answer) == [event(str(number)) for number in range(count)]
    assert inference.metadata["triton_grpc_error"] == "true"


async def test_answers_come_as_they_are_made(inference: ScriptedInference, http: httpx.AsyncClient) -> None:
    more = asyncio.Event()
    inference.streamed = [streamed("first"), more, streamed("second")]
    async with http.stream("POST", "/v2/models/m/generate_stream", json=ASK) as answer:
        lines = (line async for line in answer.aiter_lines() if line)
        assert json.loads((await anext(lines)).removeprefix("data: ")) == event("first")
        more.set()
        assert json.loads((await anext(lines)).removeprefix("data: ")) == event("second")
        assert [line async for line in lines] == []


@pytest.mark.parametrize("begun", [True, False], ids=["after an answer", "before any"])
async def test_a_caller_that_hangs_up_cancels_the_model(
    inference: ScriptedInference, http: httpx.AsyncClient, begun: bool
) -> None:
    never, entered = asyncio.Event(), asyncio.Event()

    def arrived(request: Any) -> None:
        entered.set()

    inference.answers["ModelStreamInfer"] = arrived
    inference.streamed = [*([streamed("first")] if begun else []), never]

    async def ask() -> None:
        async with http.stream("POST", "/v2/models/m/generate_stream", json=ASK) as answer:
            async for _ in answer.aiter_bytes():
                return

    asking = asyncio.create_task(ask())
    await asyncio.wait_for(entered.wait(), 10)
    if begun:
        await asking
    else:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(inference.cancelled.wait(), 10)


MODEL_FAILED = errors.Internal("the model failed", reason="SCRIPTED")


@pytest.mark.parametrize(
    "error", [MODEL_FAILED, pb.ModelStreamInferResponse(error_message="the model failed")], ids=type
)
async def test_an_error_of_the_model_is_an_event(
    inference: ScriptedInference, http: httpx.AsyncClient, error: Any
) -> None:
    inference.streamed = [streamed("first"), error]
    answer = await http.post("/v2/models/m/generate_stream", json=ASK)
    assert (answer.status_code, events(answer)) == (200, [event("first"), {"error": "the model failed"}])
    inference.streamed = [error]
    answer = await http.post("/v2/models/m/generate_stream", json=ASK)
    assert (answer.status_code, events(answer)) == (500, [{"error": "the model failed"}])


INFER = {"id": "7", "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}]}


def whole(text: str) -> dict[str, Any]:
    output = {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {"model_name": "m", "model_version": "1", "outputs": [output]}


@pytest.mark.parametrize("path", ["/v2/models/m/infer_stream", "/v2/models/m/versions/1/infer_stream"])
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_infer_request_may_have_any_number_of_answers(
    inference: ScriptedInference, http: httpx.AsyncClient, path: str, count: int
) -> None:
    inference.streamed = [streamed(str(number)) for number in range(count)]
    answer = await http.post(path, json=INFER)
    assert answer.status_code == 200
    assert events(answer) == [whole(str(number)) for number in range(count)]
    (sent,) = inference.requests
    assert (sent.id, sent.inputs[0].name, list(sent.raw_input_contents)) == ("7", "text_input", [b"\2\0\0\0hi"])


async def test_an_infer_stream_takes_binary_tensors_and_tells_of_errors(
    inference: ScriptedInference, http: httpx.AsyncClient
) -> None:
    inference.streamed = [streamed("first"), MODEL_FAILED]
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = await http.post("/v2/models/m/infer_stream", content=head + b"\2\0\0\0hi", headers=headers)
    assert (answer.status_code, events(answer)) == (200, [whole("first"), {"error": "the model failed"}])
    inference.streamed = [MODEL_FAILED]
    answer = await http.post("/v2/models/m/infer_stream", json=INFER)
    assert (answer.status_code, events(answer)) == (500, [{"error": "the model failed"}])
    bad: list[Any] = [{"inputs": 1}, [], {"inputs": [{**tensor, "shape": [-1]}]}]
    for body in bad:
        answer = await http.post("/v2/models/m/infer_stream", json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
async def test_bad_requests_are_answered_as_everywhere(
    inference: ScriptedInference, http: httpx.AsyncClient, route: str
) -> None:
    path = f"/v2/models/m/{route}"
    for body, text in (({"text_input": 1}, "attempt to access JSON non-string as string"), ([], "must be an object")):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
        assert text in answer.json()["error"]
    missing = errors.Invalid("expected 1 inputs but got 0 inputs for model 'm'")
    inference.answers |= {"ModelInfer": missing, "ModelStreamInfer": missing}
    answer = await http.post(path, json={})
    assert (answer.status_code, answer.json()) == (400, {"error": missing.message})
    inference.answers["ModelMetadata"] = errors.NotFound("Request for unknown model: 'n' is not found")
    answer = await http.post(f"/v2/models/n/{route}", json=ASK)
    assert (answer.status_code, answer.json()["error"]) == (404, "Request for unknown model: 'n' is not found")
    assert (await http.get(path)).status_code == 405
