"""The Open Inference Protocol over a scripted inference service: what each route asks there, and what comes back."""

import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.support.gateway import serve_gateway
from tests.support.scripted_inference import ScriptedInference, serve_inference
from tidemill import errors
from tidemill.api.compat.inference import model_config_pb2 as mc
from tidemill.api.compat.inference import service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class World:
    """A scripted service, and a client of the gateway before it."""

    inference: ScriptedInference
    http: httpx.AsyncClient

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        """The JSON answer to a POST, None for an empty one."""
        answer = await self.http.post(path, content=None if body is None else json.dumps(body))
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def get(self, path: str, status: int = 200) -> Any:
        """The JSON answer to a GET."""
        answer = await self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    @property
    def last(self) -> Any:
        """The last message that arrived."""
        return self.inference.requests[-1]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[World]:
    async with (
        serve_inference() as (inference, address),
        serve_gateway(inference_address=address, max_body_mib=2) as gateway,
        gateway.client("oip") as http,
    ):
        yield World(inference, http)


@pytest.fixture
def world(running: World) -> World:
    running.inference.reset()
    return running


@pytest.mark.parametrize(
    ("live", "ready", "path", "status"),
    [
        (True, True, "live", 200),
        (True, True, "ready", 200),
        (True, False, "live", 200),
        (True, False, "ready", 400),
        (False, False, "live", 400),
    ],
)
async def test_health_tells_both_facts(world: World, live: bool, ready: bool, path: str, status: int) -> None:
    world.inference.answers = {
        "ServerLive": pb.ServerLiveResponse(live=live),
        "ServerReady": pb.ServerReadyResponse(ready=ready),
    }
    assert await world.get(f"/v2/health/{path}", status) == {"live": live, "ready": ready}


async def test_models_are_listed_once_each(world: World) -> None:
    index = pb.RepositoryIndexResponse()
    for name, version in (("b", "1"), ("a", "1"), ("a", "2")):
        index.models.add(name=name, version=version, state="READY")
    world.inference.answers = {"RepositoryIndex": index}
    assert await world.get("/v2/models") == {"models": ["a", "b"]}
    assert world.last.ready


async def test_model_configuration(world: World) -> None:
    config: Any = mc.ModelConfig(name="m", platform="onnxruntime_onnx", backend="onnxruntime", max_batch_size=8)
    config.input.add(name="x", data_type=mc.TYPE_FP32, format=mc.ModelInput.FORMAT_NCHW, dims=[-1, 4])
    config.output.add(name="y", data_type=mc.TYPE_STRING, dims=[1], label_filename="labels.txt")
    config.dynamic_batching.max_queue_delay_microseconds = 2**53 + 1
    config.dynamic_batching.priority_queue_policy[3].max_queue_size = 7
    config.version_policy.specific.versions.append(3)
    config.instance_group.add(kind=mc.ModelInstanceGroup.KIND_CPU, count=2)
    config.parameters["k"].string_value = "v"
    world.inference.answers = {"ModelConfig": pb.ModelConfigResponse(config=config)}
    for path in ("/v2/models/m/config", "/v2/models/m/versions/3/config"):
        found = await world.get(path)
        assert (found["name"], found["platform"], found["max_batch_size"]) == ("m", "onnxruntime_onnx", 8)
        assert found["input"][0]["data_type"] == "TYPE_FP32"
        assert found["input"][0]["format"] == "FORMAT_NCHW"
        assert found["input"][0]["dims"] == [-1, 4]
        assert found["output"][0]["label_filename"] == "labels.txt"
        assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 2**53 + 1
        assert found["dynamic_batching"]["priority_queue_policy"]["3"]["max_queue_size"] == 7
        assert found["version_policy"] == {"specific": {"versions": [3]}}
        assert found["instance_group"][0]["kind"] == "KIND_CPU"
        assert found["parameters"] == {"k": {"string_value": "v"}}
        assert not {"sequence_batching", "ensemble_scheduling", "optimization"} & set(found)
    assert (world.last.name, world.last.version) == ("m", "3")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v2/models/stats", ("", "")),
        ("/v2/models/m/stats", ("m", "")),
        ("/v2/models/m/versions/2/stats", ("m", "2")),
    ],
)
async def test_statistics_are_numbers(world: World, path: str, asked: tuple[str, str]) -> None:
    found: Any = pb.ModelStatisticsResponse()
    model = found.model_stats.add(name="m", version="2", inference_count=2**60, execution_count=3)
    model.inference_stats.success.count = 5
    model.inference_stats.success.ns = 2**61
    model.batch_stats.add(batch_size=4).compute_infer.count = 1
    world.inference.answers = {"ModelStatistics": found}
    (told,) = (await world.get(path))["model_stats"]
    assert (told["inference_count"], told["inference_stats"]["success"]) == (2**60, {"count": 5, "ns": 2**61})
    assert told["inference_stats"]["cache_miss"] == {"count": 0, "ns": 0}
    assert told["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 0}
    assert (told["memory_usage"], told["response_stats"], told["last_inference"]) == ([], {}, 0)
    assert (world.last.name, world.last.version) == asked


@pytest.mark.parametrize(
    ("path", "body", "repository", "ready"),
    [
        ("/v2/repository/index", None, "", False),
        ("/v2/repository/index", {}, "", False),
        ("/v2/repository/index", {"ready": None}, "", False),
        ("/v2/repository/index", {"ready": True}, "", True),
        ("/v2/repository/main/index", {"ready": True}, "main", True),
    ],
)
async def test_repository_index(world: World, path: str, body: Any, repository: str, ready: bool) -> None:
    index = pb.RepositoryIndexResponse()
    index.models.add(name="a", version="1", state="READY")
    index.models.add(name="b", state="UNAVAILABLE", reason="why")
    world.inference.answers = {"RepositoryIndex": index}
    assert await world.post(path, body) == [
        {"name": "a", "version": "1", "state": "READY", "reason": ""},
        {"name": "b", "version": "", "state": "UNAVAILABLE", "reason": "why"},
    ]
    assert world.last == pb.RepositoryIndexRequest(repository_name=repository, ready=ready)


async def test_models_are_loaded_with_configuration_and_files(world: World) -> None:
    parameters = {"config": "{}", "file:1/model.onnx": base64.b64encode(b"\0\1").decode(), "n": 3, "none": None}
    assert await world.post("/v2/repository/models/m/load", {"parameters": parameters}) is None
    kinds = {name: p.WhichOneof("parameter_choice") for name, p in world.last.parameters.items()}
    assert kinds == {"config": "string_param", "file:1/model.onnx": "bytes_param", "n": "int64_param"}
    assert world.last.parameters["file:1/model.onnx"].bytes_param == b"\0\1"
    assert (world.last.repository_name, world.last.model_name) == ("", "m")
    assert await world.post("/v2/repository/main/models/m/load") is None
    assert world.last == pb.RepositoryModelLoadRequest(repository_name="main", model_name="m")


async def test_models_are_unloaded(world: World) -> None:
    body = {"parameters": {"unload_dependents": True}}
    for path, repository in (("/v2/repository", ""), ("/v2/repository/main", "main")):
        assert await world.post(f"{path}/models/m/unload", body) is None
        assert isinstance(world.last, pb.RepositoryModelUnloadRequest)
        assert (world.last.repository_name, world.last.model_name) == (repository, "m")
        assert world.last.parameters["unload_dependents"].bool_param


@pytest.mark.parametrize(("path", "model"), [("/v2/trace/setting", ""), ("/v2/models/m/trace/setting", "m")])
async def test_trace_settings(world: World, path: str, model: str) -> None:
    found = pb.TraceSettingResponse()
    found.settings["trace_level"].value.append("TIMESTAMPS")
    found.settings["trace_rate"].value.append("1000")
    world.inference.answers = {"TraceSetting": found}
    told = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1000"}
    assert await world.get(path) == told
    assert world.last == pb.TraceSettingRequest(model_name=model)
    change = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1", "trace_count": -1, "log_frequency": None}
    assert await world.post(path, change) == told
    settings = {name: list(value.value) for name, value in world.last.settings.items()}
    assert settings == {
        "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": ["1"], "trace_count": ["-1"], "log_frequency": []
    }  # fmt: skip
    assert world.last.model_name == model


async def test_log_settings(world: World) -> None:
    found = pb.LogSettingsResponse()
    found.settings["log_info"].bool_param = False
    found.settings["log_verbose_level"].uint32_param = 1
    found.settings["log_format"].string_param = "default"
    world.inference.answers = {"LogSettings": found}
    told = {"log_info": False, "log_verbose_level": 1, "log_format": "default"}
    assert await world.get("/v2/logging") == told
    assert await world.post("/v2/logging", {"log_info": True, "log_verbose_level": 2, "log_file": "x"}) == told
    sent = {name: value.WhichOneof("parameter_choice") for name, value in world.last.settings.items()}
    assert sent == {"log_info": "bool_param", "log_verbose_level": "uint32_param", "log_file": "string_param"}


async def test_system_shared_memory(world: World) -> None:
    found = pb.SystemSharedMemoryStatusResponse()
    found.regions["r"].MergeFrom(found.RegionStatus(name="r", key="/k", offset=1, byte_size=2**40))
    world.inference.answers = {"SystemSharedMemoryStatus": found}
    root = "/v2/systemsharedmemory"
    for path, name in ((root, ""), (f"{root}/region/r", "r")):
        assert await world.get(f"{path}/status") == [{"name": "r", "key": "/k", "offset": 1, "byte_size": 2**40}]
        assert world.last.name == name
        assert await world.post(f"{path}/unregister") is None
        assert world.last == pb.SystemSharedMemoryUnregisterRequest(name=name)
    assert await world.post(f"{root}/region/r/register", {"key": "/k", "offset": 4, "byte_size": 8}) is None
    assert world.last == pb.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=4, byte_size=8)


async def test_cuda_shared_memory(world: World) -> None:
    found = pb.CudaSharedMemoryStatusResponse()
    found.regions["r"].MergeFrom(found.RegionStatus(name="r", device_id=1, byte_size=2))
    world.inference.answers = {"CudaSharedMemoryStatus": found}
    root = "/v2/cudasharedmemory"
    for path, name in ((root, ""), (f"{root}/region/r", "r")):
        assert await world.get(f"{path}/status") == [{"name": "r", "device_id": 1, "byte_size": 2}]
        assert world.last.name == name
        assert await world.post(f"{path}/unregister") is None
        assert world.last == pb.CudaSharedMemoryUnregisterRequest(name=name)
    handle = base64.b64encode(b"h" * 64).decode()
    body = {"raw_handle": {"b64": handle}, "device_id": 1, "byte_size": 8}
    assert await world.post(f"{root}/region/r/register", body) is None
    assert world.last == pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"h" * 64, device_id=1, byte_size=8)


REFUSED: dict[str, tuple[str, Any]] = {
    "an index that is a list": ("/v2/repository/index", []),
    "ready that is text": ("/v2/repository/index", {"ready": "yes"}),
    "parameters that are a list": ("/v2/repository/models/m/load", {"parameters": []}),
    "a file that is no base64": ("/v2/repository/models/m/load", {"parameters": {"file:1/m": "é"}}),
    "a file that is a number": ("/v2/repository/models/m/load", {"parameters": {"file:1/m": 1}}),
    "a parameter that is a list": ("/v2/repository/models/m/load", {"parameters": {"x": []}}),
    "a name that is none": ("/v2/repository/models/..m/load", {}),
    "a setting that is an object": ("/v2/trace/setting", {"trace_rate": {}}),
    "a setting with objects": ("/v2/trace/setting", {"trace_level": [{}]}),
    "a name that is no text": ("/v2/trace/setting", {"\ud800": "x"}),
    "a negative log level": ("/v2/logging", {"log_verbose_level": -1}),
    "a log setting that is a list": ("/v2/logging", {"log_info": []}),
    "no key": ("/v2/systemsharedmemory/region/r/register", {"byte_size": 1}),
    "a size that is text": ("/v2/systemsharedmemory/region/r/register", {"key": "k", "byte_size": "1"}),
    "a negative offset": ("/v2/systemsharedmemory/region/r/register", {"key": "k", "byte_size": 1, "offset": -1}),
    "a handle that is text": ("/v2/cudasharedmemory/region/r/register", {"raw_handle": "x", "byte_size": 1}),
    "a handle that is no base64": (
        "/v2/cudasharedmemory/region/r/register",
        {"raw_handle": {"b64": "*"}, "byte_size": 1},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_requests_are_refused_before_they_are_passed_on(world: World, name: str) -> None:
    path, body = REFUSED[name]
    assert set(await world.post(path, body, 400)) == {"error"}
    assert world.inference.requests == []


ROUTES = [
    ("GET", "/v2"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/m/config"),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/models/m/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/m/load"),
    ("POST", "/v2/repository/models/m/unload"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/r/unregister"),
]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.NotFound, 404),
        (errors.Invalid, 400),
        (errors.AlreadyExists, 400),
        (errors.FailedPrecondition, 400),
        (errors.Cancelled, 400),
        (errors.Unavailable, 503),
        (errors.Unimplemented, 501),
        (errors.Internal, 500),
    ],
)
async def test_errors_of_the_service_have_the_statuses_of_the_protocol(
    world: World, kind: type[errors.TidemillError], status: int
) -> None:
    for rpc in ("ServerMetadata", "RepositoryIndex", "ModelConfig", "ModelStatistics", "ModelInfer", "TraceSetting",
                "RepositoryModelLoad", "RepositoryModelUnload", "LogSettings", "SystemSharedMemoryStatus",
                "CudaSharedMemoryUnregister"):  # fmt: skip
        world.inference.answers[rpc] = kind("what is wrong", reason="SCRIPTED")
    for verb, path in ROUTES:
        answer = await world.http.request(verb, path, json={} if verb == "POST" else None)
        assert (answer.status_code, answer.json()) == (status, {"error": "what is wrong"}), path


async def test_other_verbs_are_405(world: World) -> None:
    for verb, path in ROUTES:
        answer = await world.http.request("DELETE", path)
        assert (answer.status_code, set(answer.json())) == (405, {"error"}), path
        assert verb in answer.headers["allow"]
    assert (await world.http.get("/v2/models/m/infer")).status_code == 405


RAW = np.arange(4, dtype="<f4").tobytes()
X = {"name": "x", "datatype": "FP32", "shape": [2, 2]}


def answer(*outputs: tuple[str, dict[str, Any], bytes | None]) -> pb.ModelInferResponse:
    """An answer with such outputs of type FP32 and shape [2, 2]: name, parameters, raw elements."""
    made: Any = pb.ModelInferResponse(model_name="m", model_version="1", id="7")
    for name, parameters, raw in outputs:
        output = made.outputs.add(name=name, datatype="FP32", shape=[2, 2])
        for key, value in parameters.items():
            kind = "string_param" if isinstance(value, str) else "int64_param"
            setattr(output.parameters[key], kind, value)
        if raw is not None:
            made.raw_output_contents.append(raw)
    found: pb.ModelInferResponse = made
    return found


def binary(document: Any, tail: bytes) -> dict[str, Any]:
    """The arguments of a request with binary data."""
    head = json.dumps(document).encode()
    return {"content": head + tail, "headers": {"Inference-Header-Content-Length": str(len(head))}}


async def test_infer_passes_everything_on(world: World) -> None:
    world.inference.answers = {"ModelInfer": answer(("y", {}, RAW))}
    document = {
        "id": "7",
        "parameters": {
            "sequence_id": "s", "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 5000,
            "headers": {"a": "b"}, "own": 0.5, "none": None,
        },
        "inputs": [
            {**X, "parameters": {"binary_data_size": 16, "content": "text"}},
            {**X, "name": "z", "data": [1] * 4},
        ],
        "outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": False}}],
    }  # fmt: skip
    got = await world.http.post("/v2/models/m/versions/3/infer", **binary(document, RAW))
    assert got.json() == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.0, 1.0, 2.0, 3.0]}],
    }
    sent = world.last
    assert (sent.model_name, sent.model_version, sent.id) == ("m", "3", "7")
    assert {name: p.WhichOneof("parameter_choice") for name, p in sent.parameters.items()} == {
        "sequence_id": "string_param", "sequence_start": "bool_param", "sequence_end": "bool_param",
        "priority": "uint64_param", "timeout": "int64_param", "own": "double_param",
    }  # fmt: skip
    assert list(sent.raw_input_contents) == [RAW, np.ones(4, "<f4").tobytes()]
    assert dict(sent.inputs[0].parameters) == {"content": pb.InferParameter(string_param="text")}
    assert dict(sent.outputs[0].parameters) == {"classification": pb.InferParameter(int64_param=2)}


async def test_sequences_may_have_numbers(world: World) -> None:
    world.inference.answers = {"ModelInfer": answer()}
    for number, sent in (
        (7, pb.InferParameter(int64_param=7)),
        (2**64 - 1, pb.InferParameter(uint64_param=2**64 - 1)),
    ):
        await world.post("/v2/models/m/infer", {"parameters": {"sequence_id": number}, "inputs": None, "outputs": None})
        assert world.last.parameters["sequence_id"] == sent


@pytest.mark.parametrize("entry", [b"", None], ids=["an empty entry", "no entry"])
async def test_outputs_in_shared_memory_have_no_data(world: World, entry: bytes | None) -> None:
    shared: dict[str, Any] = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    world.inference.answers = {"ModelInfer": answer(("s", shared, entry), ("y", {}, RAW))}
    here: dict[str, Any] = {**X, "name": "z", "data": [0] * 4}
    inputs: list[Any] = [{**X, "parameters": {**shared, "shared_memory_offset": 8}}, here]
    outputs: list[Any] = [{"name": "s", "parameters": {**shared, "binary_data": True}}, {"name": "y"}]
    found = await world.post("/v2/models/m/infer", {"inputs": inputs, "outputs": outputs})
    assert found["outputs"] == [
        {"name": "s", "datatype": "FP32", "shape": [2, 2], "parameters": shared},
        {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.0, 1.0, 2.0, 3.0]},
    ]
    assert len(world.last.raw_input_contents) == 1
    assert world.last.inputs[0].parameters["shared_memory_offset"].int64_param == 8
    assert world.last.outputs[0].parameters["shared_memory_region"].string_param == "r"


async def test_an_answer_that_is_not_what_it_says_is_a_fault_without_a_word_of_it(world: World) -> None:
    world.inference.answers = {"ModelInfer": answer(("y", {}, None))}
    found = await world.post("/v2/models/m/infer", {"inputs": []}, 500)
    assert found == {"error": "the inference service sent outputs without data"}


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (zlib.compress, "deflate")])
async def test_requests_and_answers_may_be_compressed(world: World, pack: Any, name: str) -> None:
    large = np.zeros(10_000, "<f4").tobytes()
    made = answer(("y", {}, large))
    made.outputs[0].shape[:] = [100, 100]
    world.inference.answers = {"ModelInfer": made}
    tensor: dict[str, Any] = {**X, "shape": [100, 100], "parameters": {"binary_data_size": len(large)}}
    request = binary({"inputs": [tensor], "parameters": {"binary_data_output": True}}, large)
    request["content"] = pack(request["content"])
    request["headers"] |= {"Content-Encoding": name, "Accept-Encoding": name}
    got = await world.http.post("/v2/models/m/infer", **request)
    assert world.last.raw_input_contents == [large]
    assert got.headers["content-encoding"] == name
    assert int(got.headers["content-length"]) < len(large) / 10
    head = int(got.headers["Inference-Header-Content-Length"])
    assert json.loads(got.content[:head])["outputs"][0]["parameters"] == {"binary_data_size": len(large)}
    assert got.content[head:] == large
    request["headers"]["Accept-Encoding"] = "identity"
    plain = await world.http.post("/v2/models/m/infer", **request)
    assert "content-encoding" not in plain.headers
    assert plain.content == got.content


async def test_a_bomb_is_refused(world: World) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < 1 << 17
    for path in ("/v2/models/m/infer", "/v2/repository/index"):
        got = await world.http.post(path, content=bomb, headers={"Content-Encoding": "gzip"})
        assert (got.status_code, set(got.json())) == (413, {"error"})
    assert world.inference.requests == []
