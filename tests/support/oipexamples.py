"""Good requests of every kind of the Open Inference Protocol, to a server of `oipserver`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

from tests.support.oipmodels import Function, Talker, configuration, tensor
from tests.support.oipserver import Versions
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.tensors.dtypes import DataType

WORDS = ("add", "text", "echo", "talk", "a", "b", "sum", "n", "x", "y", "region", "oiptest", "TIMESTAMPS", "INT32")


def versions() -> Versions:
    """Models that take all kinds of requests."""
    numbers, texts = DataType.INT32, DataType.BYTES
    pair = [tensor("a", numbers, (4,)), tensor("b", numbers, (4,), optional=True)]
    add = configuration("add", pair, [tensor("sum", numbers, (4,), labels=("one", "two"))], max_batch=4)
    text = configuration("text", [tensor("x", texts)], [tensor("y", texts)])
    echo = configuration("echo", [tensor("n", numbers, (1,))], [tensor("y", numbers, (1,))])
    talk = configuration("talk", [tensor("n", numbers, (1,))], [tensor("y", numbers, (1,))], decoupled=True)
    return {
        ("add", 1): (add, Function(lambda a, b=0: {"sum": np.add(a, b)})),
        ("text", 1): (text, Function(lambda x: {"y": x})),
        ("echo", 1): (echo, Talker()),
        ("talk", 1): (talk, Few()),
    }


class Few(Talker):
    """Answers at most ten times, however often it is asked to."""

    def stream(self, call: Any, receive: Any) -> None:
        few = np.clip(call.inputs["n"], -10, 10)
        call.inputs = {"n": few}
        call.parameters = {}
        super().stream(call, receive)


def infers() -> list[Message]:
    """Requests to infer."""
    a = np.arange(8, dtype=np.int32)
    raw: Any = pb.ModelInferRequest(model_name="add", id="1", raw_input_contents=[a.tobytes()] * 2)
    for name in ("a", "b"):
        raw.inputs.add(name=name, datatype="INT32", shape=[2, 4])
    raw.outputs.add(name="sum").parameters["classification"].int64_param = 2
    raw.parameters["sequence_id"].int64_param = 7
    raw.parameters["priority"].uint64_param = 1
    raw.parameters["own"].string_param = "x"
    typed: Any = pb.ModelInferRequest(model_name="add")
    typed.inputs.add(name="a", datatype="INT32", shape=[1, 4]).contents.int_contents.extend([1, 2, 3, 4])
    text: Any = pb.ModelInferRequest(model_name="text", raw_input_contents=[b"\1\0\0\0a\0\0\0\0"])
    text.inputs.add(name="x", datatype="BYTES", shape=[2])
    shared: Any = pb.ModelInferRequest(model_name="echo")
    where = shared.inputs.add(name="n", datatype="INT32", shape=[1]).parameters
    where["shared_memory_region"].string_param = "region"
    where["shared_memory_byte_size"].int64_param = 4
    where["shared_memory_offset"].int64_param = 4
    there = shared.outputs.add(name="y").parameters
    there["shared_memory_region"].string_param = "region"
    there["shared_memory_byte_size"].int64_param = 8
    talk: Any = pb.ModelInferRequest(model_name="talk", raw_input_contents=[np.int32(2).tobytes()])
    talk.inputs.add(name="n", datatype="INT32", shape=[1])
    talk.parameters["triton_enable_empty_final_response"].bool_param = True
    return [raw, typed, text, shared, talk]


def examples(key: str) -> Mapping[str, Sequence[Message]]:
    """Good requests, by method; `key` names an object in shared memory of 64 bytes."""
    load: Any = pb.RepositoryModelLoadRequest(model_name="add")
    load.parameters["config"].string_param = "{}"
    load.parameters["file:1/model.onnx"].bytes_param = b"x"
    unload: Any = pb.RepositoryModelUnloadRequest(model_name="add")
    unload.parameters["unload_dependents"].bool_param = True
    trace: Any = pb.TraceSettingRequest(model_name="add")
    trace.settings["trace_rate"].value.append("2")
    trace.settings["trace_level"].value.extend(["TIMESTAMPS", "TENSORS"])
    log: Any = pb.LogSettingsRequest()
    log.settings["log_verbose_level"].uint32_param = 1
    log.settings["log_info"].bool_param = False
    return {
        "ServerLive": [pb.ServerLiveRequest()],
        "ServerReady": [pb.ServerReadyRequest()],
        "ServerMetadata": [pb.ServerMetadataRequest()],
        "ModelReady": [pb.ModelReadyRequest(name="add", version="1")],
        "ModelMetadata": [pb.ModelMetadataRequest(name="add", version="1")],
        "ModelConfig": [pb.ModelConfigRequest(name="add", version="1")],
        "ModelStatistics": [pb.ModelStatisticsRequest(name="add", version="1"), pb.ModelStatisticsRequest()],
        "ModelInfer": infers(),
        "ModelStreamInfer": infers(),
        "RepositoryIndex": [pb.RepositoryIndexRequest(ready=True)],
        "RepositoryModelLoad": [load],
        "RepositoryModelUnload": [unload],
        "SystemSharedMemoryStatus": [pb.SystemSharedMemoryStatusRequest(name="region")],
        "SystemSharedMemoryRegister": [
            pb.SystemSharedMemoryRegisterRequest(name="region", key=key, offset=8, byte_size=16)
        ],
        "SystemSharedMemoryUnregister": [pb.SystemSharedMemoryUnregisterRequest(name="region")],
        "CudaSharedMemoryStatus": [pb.CudaSharedMemoryStatusRequest(name="region")],
        "CudaSharedMemoryRegister": [
            pb.CudaSharedMemoryRegisterRequest(name="region", raw_handle=bytes(64), byte_size=16)
        ],
        "CudaSharedMemoryUnregister": [pb.CudaSharedMemoryUnregisterRequest(name="region")],
        "TraceSetting": [trace],
        "LogSettings": [log],
    }
