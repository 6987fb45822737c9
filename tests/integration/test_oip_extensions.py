"""The protocol's optional parts over gRPC: batches, classification, shared memory, statistics, settings, control."""

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.oipmodels import Function, Talker, configuration, tensor
from tests.support.oipserver import OipServer, oip_server
from tidemill.api.compat.inference import model_config_pb2 as mc
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Internal, NotFound
from tidemill.inference.repository import Model, State, Status
from tidemill.tensors.dtypes import DataType

Code = grpc.StatusCode
INT = DataType.INT32
LABELS = ("cat", "dog", "owl")


class Control:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        self.seen.append(("load", model, config, dict(files)))
        if model == "bad":
            raise Internal("failed to load 'bad', no such folder", reason="LOAD_FAILED")

    def unload(self, model: str, dependents: bool, version: str = "") -> None:
        self.seen.append(("unload", model, dependents))
        if model == "nope":
            raise NotFound("Request for unknown model: 'nope' is not found")


@pytest.fixture(scope="module")
def control() -> Control:
    return Control()


@pytest.fixture(scope="module")
def server(control: Control) -> Iterator[OipServer]:
    pair = [tensor("a", INT, (4,)), tensor("b", INT, (4,), optional=True)]
    add = Function(lambda a, b=0: {"sum": a + b, "a": a})
    score = Function(lambda x: {"y": x, "t": x.astype(str).astype(object)})
    labelled = [tensor("y", labels=LABELS), tensor("t", DataType.BYTES)]
    config = mc.ModelConfig(name="tracked", max_batch_size=4)
    versions = {
        ("add", 1): (configuration("add", pair, [tensor("sum", INT, (4,)), tensor("a", INT, (4,))], max_batch=4), add),
        ("add", 2): (configuration("add", pair, [tensor("sum", INT, (4,))], max_batch=4), add),
        ("score", 1): (configuration("score", [tensor("x")], labelled, max_batch=8), score),
        ("flat", 1): (configuration("flat", [tensor("x", dims=(-1, 3))], [tensor("y", labels=LABELS)]), score),
        ("echo", 1): (configuration("echo", [tensor("n", INT)], [tensor("y", INT)]), Talker()),
        ("talk", 1): (configuration("talk", [tensor("n", INT)], [tensor("y", INT)], decoupled=True), Talker()),
        ("half", 1): (
            configuration("half", [tensor("x", DataType.FP16)], [tensor("y", DataType.FP16)]),
            Function(lambda x: {"y": x}),
        ),
        ("tracked", 1): (
            configuration("tracked", [tensor("n", INT)], [tensor("y", INT)], tracked=config.SerializeToString()),
            Talker(),
        ),
    }
    others = {"waiting": Model({1: Status(State.LOADING)})}
    with oip_server(versions, control=control, share=True, cuda=lambda: None, sample=0.0, others=others) as running:
        yield running


def request(model: str, **inputs: Any) -> Any:
    """A request with raw elements."""
    made: Any = pb.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        array = np.asarray(value)
        kind = {"i": "INT32", "f": "FP32" if array.itemsize == 4 else "FP16"}[array.dtype.kind]
        made.inputs.add(name=name, datatype=kind, shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    return made


def ints(*rows: Any) -> Any:
    return np.array(rows, np.int32)


def floats(*rows: Any) -> Any:
    return np.array(rows, np.float32)


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    found: Any = error.value
    return found.code(), found.details()


def texts(response: Any, index: int = 0) -> list[bytes]:
    """The elements of an output of BYTES."""
    data, found = response.raw_output_contents[index], []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def test_batches(server: OipServer) -> None:
    rows = ints([1, 2, 3, 4], [5, 6, 7, 8])
    answer = server.stub.ModelInfer(request("add", a=rows, b=rows))
    assert (answer.model_version, list(answer.outputs[0].shape)) == ("2", [2, 4])
    assert answer.raw_output_contents[0] == (2 * rows).tobytes()
    big, two = np.zeros((5, 4), np.int32), np.zeros((2, 4), np.int32)
    assert refused(lambda: server.stub.ModelInfer(request("add", a=big))) == (
        Code.INVALID_ARGUMENT,
        "inference request batch-size must be <= 4 for 'add'",
    )
    assert refused(lambda: server.stub.ModelInfer(request("add", a=two, b=big[:3]))) == (
        Code.INVALID_ARGUMENT,
        "input 'b' batch size does not match other inputs for 'add'",
    )
    assert refused(lambda: server.stub.ModelInfer(request("add", a=ints(1, 2, 3, 4)))) == (
        Code.INVALID_ARGUMENT,
        "unexpected shape for input 'a' for model 'add'. Expected [-1,4], got [4]",
    )


def test_optional_inputs(server: OipServer) -> None:
    rows = ints([1, 2, 3, 4])
    assert server.stub.ModelInfer(request("add", a=rows)).raw_output_contents[0] == rows.tobytes()
    code, text = refused(lambda: server.stub.ModelInfer(request("add", b=rows)))
    assert (code, text) == (
        Code.INVALID_ARGUMENT,
        "expected number of inputs between 1 and 2 but got 1 inputs for model 'add'. Got input(s) ['b'], but missing "
        "required input(s) ['a']. Please provide all required input(s).",
    )


def test_parameters_reach_the_model_and_come_back(server: OipServer) -> None:
    sent = request("echo", n=ints(3))
    sent.parameters["mine"].string_param = "x"
    sent.parameters["count"].int64_param = -7
    sent.parameters["big"].uint64_param = 2**64 - 1
    sent.parameters["part"].double_param = 0.5
    sent.parameters["on"].bool_param = True
    own = dict(sent.parameters)
    sent.parameters["sequence_id"].int64_param = 5
    sent.parameters["sequence_start"].bool_param = True
    sent.parameters["priority"].int64_param = 2
    sent.parameters["timeout"].int64_param = 1_500_000
    sent.parameters["headers"].string_param = "x"
    sent.parameters["binary_data_output"].bool_param = True
    assert dict(server.stub.ModelInfer(sent).parameters) == own
    runtime: Any = server.loaded["echo", 1].runtime
    call = runtime.calls[-1]
    assert (call.correlation, call.starts, call.ends, call.priority, call.patience) == (5, True, False, 2, 1.5)
    sent.parameters["sequence_id"].string_param = "five"
    sent.parameters["priority"].uint64_param = 1
    server.stub.ModelInfer(sent)
    assert (runtime.calls[-1].correlation, runtime.calls[-1].priority) == ("five", 1)


def test_classification(server: OipServer) -> None:
    sent = request("score", x=floats([0.25, 0.5, 0.125], [3, 1, 2]))
    sent.outputs.add(name="y").parameters["classification"].int64_param = 2
    answer = server.stub.ModelInfer(sent)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])
    assert texts(answer) == [b"0.500000:1:dog", b"0.250000:0:cat", b"3.000000:0:cat", b"2.000000:2:owl"]
    sent = request("flat", x=floats([0.25, 0.5, 0.125], [3, 1, 2]))
    sent.outputs.add(name="y").parameters["classification"].int64_param = 99
    answer = server.stub.ModelInfer(sent)
    assert list(answer.outputs[0].shape) == [6]
    assert texts(answer)[:2] == [b"3.000000:3", b"2.000000:5"]
    sent = request("score", x=floats([1]))
    sent.outputs.add(name="t").parameters["classification"].int64_param = 1
    assert refused(lambda: server.stub.ModelInfer(sent)) == (
        Code.INVALID_ARGUMENT,
        "class result not available for output 't' due to unsupported type 'BYTES'",
    )


def test_decoupled_models_need_a_stream(server: OipServer) -> None:
    assert refused(lambda: server.stub.ModelInfer(request("talk", n=ints(1)))) == (
        Code.UNIMPLEMENTED,
        "ModelInfer RPC doesn't support models with decoupled transaction policy",
    )


def test_configuration(server: OipServer) -> None:
    config = server.stub.ModelConfig(pb.ModelConfigRequest(name="tracked")).config
    assert config == mc.ModelConfig(name="tracked", max_batch_size=4)
    config = server.stub.ModelConfig(pb.ModelConfigRequest(name="add", version="1")).config
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("add", "test", "test", 4)
    assert [(i.name, i.data_type, list(i.dims), i.optional) for i in config.input] == [
        ("a", mc.TYPE_INT32, [4], False),
        ("b", mc.TYPE_INT32, [4], True),
    ]
    assert [output.name for output in config.output] == ["sum", "a"]
    assert server.stub.ModelConfig(pb.ModelConfigRequest(name="talk")).config.model_transaction_policy.decoupled
    assert server.stub.ModelConfig(pb.ModelConfigRequest(name="score")).config.output[1].data_type == mc.TYPE_STRING
    metadata = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="add", version="1"))
    assert [list(tensor.shape) for tensor in metadata.inputs] == [[-1, 4], [-1, 4]]
    assert list(metadata.versions) == ["1", "2"]


def test_what_is_known_but_not_loaded(server: OipServer) -> None:
    assert not server.stub.ModelReady(pb.ModelReadyRequest(name="waiting")).ready
    assert not server.stub.ModelReady(pb.ModelReadyRequest(name="waiting", version="1")).ready
    unavailable = "Request for unknown model: 'waiting' version 1 is not at ready state"
    for call in (
        lambda: server.stub.ModelMetadata(pb.ModelMetadataRequest(name="waiting", version="1")),
        lambda: server.stub.ModelConfig(pb.ModelConfigRequest(name="waiting", version="1")),
        lambda: server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="waiting", version="1")),
        lambda: server.stub.ModelInfer(pb.ModelInferRequest(model_name="waiting", model_version="1")),
    ):
        assert refused(call) == (Code.UNAVAILABLE, unavailable)
    assert refused(lambda: server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="waiting"))) == (
        Code.NOT_FOUND,
        "Request for unknown model: 'waiting' has no available versions",
    )


def test_statistics(server: OipServer) -> None:
    def stats(name: str = "", version: str = "") -> Any:
        return server.stub.ModelStatistics(pb.ModelStatisticsRequest(name=name, version=version)).model_stats

    assert {(one.name, one.version) for one in stats()} == {(name, str(number)) for name, number in server.loaded}
    assert [one.version for one in stats("add")] == ["1", "2"]
    (before,) = stats("score", "1")
    for size in (1, 3, 3):
        server.stub.ModelInfer(request("score", x=np.zeros((size, 2), np.float32)))
    (after,) = stats("score", "1")
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference > 1_600_000_000_000
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    for name in ("success", "queue", "compute_infer"):
        assert getattr(after.inference_stats, name).count == after.inference_stats.success.count
    assert after.inference_stats.success.ns >= after.inference_stats.compute_infer.ns > 0
    sizes = {one.batch_size: one.compute_infer.count for one in after.batch_stats}
    assert sizes[3] == 2
    assert refused(lambda: stats("add", "7"))[1] == "Request for unknown model: 'add' version 7 is not found"
    assert refused(lambda: stats("nope"))[1] == "Request for unknown model: 'nope' is not found"


def test_trace_settings(server: OipServer) -> None:
    def set_trace(model: str = "", **changes: list[str]) -> dict[str, list[str]]:
        sent: Any = pb.TraceSettingRequest(model_name=model)
        for name, values in changes.items():
            sent.settings[name].value.extend(values)
        return {name: list(found.value) for name, found in server.stub.TraceSetting(sent).settings.items()}

    assert set_trace()["trace_level"] == ["OFF"]
    found = set_trace("score", trace_level=["TIMESTAMPS", "TENSORS"], trace_rate=["2"], trace_count=["1"])
    assert (found["trace_rate"], found["trace_mode"], found["trace_file"]) == (["2"], ["opentelemetry"], [""])
    server.spans.clear()
    for _ in range(4):
        server.stub.ModelInfer(request("score", x=floats([1, 2])))
        server.stub.ModelInfer(request("flat", x=floats([1, 2, 3])))
    spans = {span.name: span for span in server.spans.get_finished_spans()}
    assert sorted(spans) == ["inference.execute", "inference.infer"]
    inner, outer = spans["inference.execute"].parent, spans["inference.infer"]
    assert inner is not None
    assert outer.context is not None
    assert inner.span_id == outer.context.span_id
    assert outer.attributes is not None
    assert outer.attributes["tidemill.inputs"] == "x float32 [1, 2]"
    assert set_trace("score")["trace_count"] == ["0"]
    assert set_trace("score", trace_level=[], trace_rate=[], trace_count=[]) == set_trace()
    assert refused(lambda: set_trace("does-not-exist")) == (
        Code.NOT_FOUND,
        "Request for unknown model : does-not-exist",
    )
    assert refused(lambda: set_trace(trace_file=["x"])) == (
        Code.UNIMPLEMENTED,
        "trace file location can not be updated through network protocol",
    )
    assert refused(lambda: set_trace(trace_rate=["0"]))[0] is Code.INVALID_ARGUMENT
    assert refused(lambda: set_trace(trace_level=["x"] * 9))[0] is Code.INVALID_ARGUMENT


def test_log_settings(server: OipServer) -> None:
    def set_log(**changes: Any) -> dict[str, Any]:
        sent: Any = pb.LogSettingsRequest()
        for name, value in changes.items():
            arm = {bool: "bool_param", int: "uint32_param", str: "string_param", type(None): ""}[type(value)]
            if arm:
                setattr(sent.settings[name], arm, value)
            else:
                sent.settings[name].SetInParent()
        found = server.stub.LogSettings(sent).settings
        return {name: getattr(one, str(one.WhichOneof("parameter_choice"))) for name, one in found.items()}

    before = set_log()
    assert before.keys() == {
        "log_file",
        "log_info",
        "log_warning",
        "log_error",
        "log_verbose_level",
        "log_format",
    }
    assert set_log(log_verbose_level=1)["log_verbose_level"] == 1
    assert server.logger.isEnabledFor(10)
    assert set_log(log_verbose_level=0, log_info=False)["log_info"] is False
    assert not server.logger.isEnabledFor(20)
    assert refused(lambda: set_log(log_file="x")) == (
        Code.UNIMPLEMENTED,
        "log file location can not be updated through network protocol",
    )
    assert refused(lambda: set_log(log_info="yes")) == (Code.INVALID_ARGUMENT, "expect boolean for 'log_info'")
    assert refused(lambda: set_log(log_info=None)) == (Code.INVALID_ARGUMENT, "'log_info': has no value")


def test_model_control(server: OipServer, control: Control) -> None:
    sent: Any = pb.RepositoryModelLoadRequest(model_name="m")
    sent.parameters["config"].string_param = "{}"
    sent.parameters["file:1/model.onnx"].bytes_param = b"\0\1"
    answer = server.stub.RepositoryModelLoad(sent)
    assert (answer.model_name, answer.isLoaded) == ("m", True)
    assert control.seen[-1] == ("load", "m", "{}", {"1/model.onnx": b"\0\1"})
    gone: Any = pb.RepositoryModelUnloadRequest(model_name="m")
    server.stub.RepositoryModelUnload(gone)
    gone.parameters["unload_dependents"].bool_param = True
    server.stub.RepositoryModelUnload(gone)
    assert control.seen[-2:] == [("unload", "m", False), ("unload", "m", True)]


@pytest.mark.parametrize(
    ("fields", "parameters", "code", "text"),
    [
        ({"model_name": "bad"}, {}, Code.INTERNAL, "failed to load 'bad', no such folder"),
        ({"model_name": "m", "repository_name": "r"}, {}, Code.UNIMPLEMENTED, "'repository_name' specification is"),
        ({"model_name": "../m"}, {}, Code.INVALID_ARGUMENT, "model_name"),
        ({}, {}, Code.INVALID_ARGUMENT, "model_name"),
        (
            {"model_name": "m"},
            {"config": {"int64_param": 1}},
            Code.INVALID_ARGUMENT,
            "invalid value type for parameter",
        ),
        ({"model_name": "m"}, {"file:1/x": {"string_param": ""}}, Code.INVALID_ARGUMENT, "invalid value type for"),
        ({"model_name": "m"}, {"other": {"bool_param": True}}, Code.INVALID_ARGUMENT, "unrecognized load parameter"),
    ],
)
def test_loads_that_are_refused(
    server: OipServer, fields: Any, parameters: Any, code: grpc.StatusCode, text: str
) -> None:
    sent: Any = pb.RepositoryModelLoadRequest(**fields)
    for name, value in parameters.items():
        sent.parameters[name].MergeFrom(pb.ModelRepositoryParameter(**value))
    found = refused(lambda: server.stub.RepositoryModelLoad(sent))
    assert (found[0], found[1].startswith(text)) == (code, True), found


def test_unloads_that_are_refused(server: OipServer) -> None:
    sent: Any = pb.RepositoryModelUnloadRequest(model_name="nope")
    assert refused(lambda: server.stub.RepositoryModelUnload(sent))[0] is Code.NOT_FOUND
    sent.parameters["unload_dependents"].int64_param = 1
    assert refused(lambda: server.stub.RepositoryModelUnload(sent))[0] is Code.INVALID_ARGUMENT
    named = pb.RepositoryIndexRequest(repository_name="r")
    assert refused(lambda: server.stub.RepositoryIndex(named))[0] is Code.UNIMPLEMENTED


@pytest.fixture
def key() -> Iterator[str]:
    name = f"oiptest-{uuid.uuid4().hex}"
    path = Path("/dev/shm") / name
    path.write_bytes(bytes(64))
    yield name
    path.unlink(missing_ok=True)


def register(server: OipServer, name: str, key: str, size: int, offset: int = 0) -> None:
    server.stub.SystemSharedMemoryRegister(
        pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    )


def shared(tensor: Any, region: str, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


@pytest.fixture
def memory(server: OipServer, key: str) -> Iterator[Path]:
    """An object of which the first half is the region `in`, the second one `out`."""
    register(server, "in", f"/{key}", 32)
    register(server, "out", key, 32, 32)
    yield Path("/dev/shm") / key
    server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())


def test_shared_memory(server: OipServer, memory: Path, key: str) -> None:
    a, b = ints([1, 2, 3, 4]), ints([10, 20, 30, 40])
    with memory.open("r+b") as file:
        file.write(bytes(16) + a.tobytes())
    sent: Any = pb.ModelInferRequest(model_name="add", model_version="1", raw_input_contents=[b.tobytes()])
    shared(sent.inputs.add(name="a", datatype="INT32", shape=[1, 4]), "in", 16, 16)
    sent.inputs.add(name="b", datatype="INT32", shape=[1, 4])
    shared(sent.outputs.add(name="sum"), "out", 24, 8)
    sent.outputs.add(name="a")
    answer = server.stub.ModelInfer(sent)
    assert memory.read_bytes()[40:56] == (a + b).tobytes()
    assert list(answer.raw_output_contents) == [b"", a.tobytes()]
    where = {name: value.WhichOneof("parameter_choice") for name, value in answer.outputs[0].parameters.items()}
    assert where == {
        "shared_memory_region": "string_param",
        "shared_memory_byte_size": "int64_param",
        "shared_memory_offset": "int64_param",
    }
    assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 16
    status = server.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
    assert {name: (one.key, one.offset, one.byte_size) for name, one in status.items()} == {
        "in": (f"/{key}", 0, 32),
        "out": (key, 32, 32),
    }


def test_inputs_in_shared_memory_are_not_typed(key: str) -> None:
    echo = configuration("echo", [tensor("n", INT, (4,))], [tensor("y", INT, (4,))])
    with oip_server({("echo", 1): (echo, Talker())}, mirror=True, share=True) as mirroring:
        register(mirroring, "in", key, 16)
        sent: Any = pb.ModelInferRequest(model_name="echo")
        shared(sent.inputs.add(name="n", datatype="INT32", shape=[4]), "in", 16)
        answer = mirroring.stub.ModelInfer(sent)
        assert list(answer.raw_output_contents) == [bytes(16)]
        assert not answer.outputs[0].HasField("contents")


def test_labels_in_shared_memory(server: OipServer, memory: Path) -> None:
    sent = request("score", x=floats([0.25, 0.5]))
    output = sent.outputs.add(name="y")
    output.parameters["classification"].int64_param = 1
    shared(output, "out", 32)
    server.stub.ModelInfer(sent)
    assert memory.read_bytes()[32:50] == b"\x0e\0\0\0" + b"0.500000:1:dog"


def shared_request(place: tuple[str, int, int], **changes: Any) -> Any:
    sent: Any = pb.ModelInferRequest(model_name="add", model_version="1")
    tensor = sent.inputs.add(name="a", datatype="INT32", shape=changes.get("shape", [1, 4]))
    shared(tensor, *place)
    tensor.MergeFrom(pb.ModelInferRequest.InferInputTensor(**changes.get("more", {})))
    sent.raw_input_contents.extend(changes.get("raw", []))
    return sent


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (shared_request(("in", 16, 32)), Code.INVALID_ARGUMENT, "Invalid offset for shared memory region: 'in'"),
        (
            shared_request(("in", 16, 17)),
            Code.INVALID_ARGUMENT,
            "Invalid offset + byte size for shared memory region: 'in'",
        ),
        (
            shared_request(("in", 2**63 - 1, 1)),
            Code.INVALID_ARGUMENT,
            "Invalid offset + byte size for shared memory region: 'in'",
        ),
        (
            shared_request(("in", 16, -1)),
            Code.INVALID_ARGUMENT,
            "invalid value for 'shared_memory_offset' parameter: must not be negative",
        ),
        (shared_request(("nope", 16, 0)), Code.NOT_FOUND, "Unable to find shared memory region: 'nope'"),
        (
            shared_request(("in", 20, 0)),
            Code.INVALID_ARGUMENT,
            "input byte size mismatch for input 'a' for model 'add'. Expected 16, got 20",
        ),
        (
            shared_request(("in", 16, 0), raw=[bytes(16)]),
            Code.INVALID_ARGUMENT,
            "expected 0 entries in raw_input_contents for model 'add', one for each input that is not in shared "
            "memory, got 1",
        ),
        (
            shared_request(("in", 16, 0), more={"contents": pb.InferTensorContents(int_contents=[1])}),
            Code.INVALID_ARGUMENT,
            "contents field must not be specified when using shared memory for 'a' for model 'add'",
        ),
    ],
)
def test_wrong_uses_of_shared_memory(
    server: OipServer, memory: Path, sent: Any, code: grpc.StatusCode, text: str
) -> None:
    assert refused(lambda: server.stub.ModelInfer(sent)) == (code, text)
    assert not any(region._users for region in server.regions.find("system"))
    assert server.unused


def test_outputs_that_do_not_fit(server: OipServer, memory: Path) -> None:
    sent = request("add", a=ints([1, 2, 3, 4]))
    shared(sent.outputs.add(name="sum"), "out", 8)
    assert refused(lambda: server.stub.ModelInfer(sent)) == (
        Code.INVALID_ARGUMENT,
        "shared memory size specified with the request for output 'sum' (8 bytes) should be at least 16 bytes to hold "
        "the results",
    )
    assert memory.read_bytes() == bytes(64)
    assert not any(region._users for region in server.regions.find("system"))


def test_memory_that_its_client_has_cut_off(server: OipServer, memory: Path) -> None:
    os.truncate(memory, 4)
    sent = shared_request(("in", 16, 0))
    code, text = refused(lambda: server.stub.ModelInfer(sent))
    assert (code, text) == (
        Code.INVALID_ARGUMENT,
        "shared memory region 'in' is shorter than it was when it was registered",
    )
    sent = request("add", a=ints([1, 2, 3, 4]))
    shared(sent.outputs.add(name="sum"), "out", 16)
    assert refused(lambda: server.stub.ModelInfer(sent))[0] is Code.INVALID_ARGUMENT
    assert memory.stat().st_size == 4


def test_huge_regions_are_not_read(server: OipServer, memory: Path) -> None:
    os.truncate(memory, 1 << 40)
    register(server, "huge", memory.name, 1 << 40)
    sent = shared_request(("huge", 1 << 34, 0), shape=[1 << 30, 4])
    assert refused(lambda: server.stub.ModelInfer(sent)) == (
        Code.RESOURCE_EXHAUSTED,
        "a request may have at most 1048576 bytes in shared memory",
    )


def test_registering(server: OipServer, memory: Path, key: str) -> None:
    assert refused(lambda: register(server, "in", key, 8)) == (
        Code.ALREADY_EXISTS,
        "shared memory region 'in' already in manager",
    )
    code, text = refused(lambda: register(server, "new", "../../etc/passwd", 8))
    assert (code, text.startswith("Unable to open shared memory region")) == (Code.INVALID_ARGUMENT, True)
    asked = pb.SystemSharedMemoryStatusRequest(name="new")
    assert refused(lambda: server.stub.SystemSharedMemoryStatus(asked)) == (
        Code.NOT_FOUND,
        "Unable to find system shared memory region: 'new'",
    )
    server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="new"))
    server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="in"))
    left = server.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
    assert set(left) == {"out"}


def test_memory_of_gpus(server: OipServer) -> None:
    asked = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=bytes(64), byte_size=8)
    assert refused(lambda: server.stub.CudaSharedMemoryRegister(asked)) == (
        Code.INVALID_ARGUMENT,
        "failed to register CUDA shared memory region: 'g', GPUs not supported",
    )
    server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="g"))
    assert not server.stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
    named = pb.CudaSharedMemoryStatusRequest(name="g")
    assert refused(lambda: server.stub.CudaSharedMemoryStatus(named))[0] is Code.NOT_FOUND


def test_extensions(server: OipServer) -> None:
    named = set(server.stub.ServerMetadata(pb.ServerMetadataRequest()).extensions)
    assert {"model_repository", "model_repository(unload_dependents)", "system_shared_memory"} <= named
    assert "cuda_shared_memory" not in named


@pytest.mark.parametrize("mirror", [False, True])
def test_typed_requests_get_typed_answers_where_that_is_set(mirror: bool) -> None:
    echo = configuration("echo", [tensor("n", INT)], [tensor("y", INT)])
    half = configuration("half", [tensor("n", INT)], [tensor("y", DataType.FP16)])
    text = configuration("text", [tensor("n", INT)], [tensor("y", DataType.BYTES)])
    versions = {
        ("echo", 1): (echo, Talker()),
        ("half", 1): (half, Function(lambda n: {"y": n.astype(np.float16)})),
        ("text", 1): (text, Function(lambda n: {"y": np.array(["ü", b"\0"], object)})),
    }
    with oip_server(versions, mirror=mirror) as server:

        def typed(model: str) -> Any:
            sent: Any = pb.ModelInferRequest(model_name=model)
            sent.inputs.add(name="n", datatype="INT32", shape=[2]).contents.int_contents.extend([1, 2])
            return server.stub.ModelInfer(sent)

        raw = server.stub.ModelInfer(request("echo", n=ints(1, 2)))
        assert list(raw.raw_output_contents) == [ints(1, 2).tobytes()]
        assert list(typed("half").raw_output_contents) == [np.array([1, 2], np.float16).tobytes()]
        found, words = typed("echo"), typed("text")
        if mirror:
            assert (list(found.outputs[0].contents.int_contents), list(found.raw_output_contents)) == ([1, 2], [])
            assert list(words.outputs[0].contents.bytes_contents) == ["ü".encode(), b"\0"]
        else:
            assert list(found.raw_output_contents) == [ints(1, 2).tobytes()]
            assert not found.outputs[0].HasField("contents")
            assert texts(words) == ["ü".encode(), b"\0"]
