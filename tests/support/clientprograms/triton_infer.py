"""tritonclient over gRPC: single requests, in all ways to make them, and what the server says of itself."""

import queue
import time
from functools import partial
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import ONES, RAMP, fails, grpc_client, one, outputs, pair, summed

checks = Checks()


@checks
def health(server: Server) -> None:
    with grpc_client(server) as client:
        same([client.is_server_live(), client.is_server_ready()], [True, True])
        asked = [("simple",), ("simple", "1"), ("simple", "7"), ("late",), ("nope",)]
        same([client.is_model_ready(*names) for names in asked], [True, True, False, False, False])


@checks
def metadata(server: Server) -> None:
    with grpc_client(server) as client:
        about = client.get_server_metadata()
        same(about.name, "triton")
        if not about.version or not {"classification", "sequence", "statistics"} <= set(about.extensions):
            raise AssertionError(about)
        simple = client.get_model_metadata("simple")
        same([simple.name, list(simple.versions), simple.platform], ["simple", ["1"], "onnxruntime_onnx"])
        same(
            [[t.name, t.datatype, list(t.shape)] for t in (*simple.inputs, *simple.outputs)],
            [[name, "INT32", [-1, 16]] for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")],
        )
        same(client.get_model_metadata("simple_ensemble").platform, "ensemble")
        same(client.get_model_metadata("repeat_int32", as_json=True)["outputs"][0]["shape"], ["1"])
        fails("NOT_FOUND", "Request for unknown model: 'nope' is not found", lambda: client.get_model_metadata("nope"))


@checks
def configuration(server: Server) -> None:
    with grpc_client(server) as client:
        config = client.get_model_config("simple").config
        same([config.name, config.max_batch_size, config.HasField("dynamic_batching")], ["simple", 8, True])
        same([[t.name, list(t.dims)] for t in config.input], [["INPUT0", [16]], ["INPUT1", [16]]])
        same(client.get_model_config("repeat_int32").config.model_transaction_policy.decoupled, True)
        same(client.get_model_config("simple_sequence").config.HasField("sequence_batching"), True)
        same(len(client.get_model_config("simple_ensemble").config.ensemble_scheduling.step), 2)
        same(client.get_model_config("colours").config.output[0].label_filename, "labels.txt")


@checks
def index(server: Server) -> None:
    with grpc_client(server) as client:
        models = {model.name: (model.version, model.state) for model in client.get_model_repository_index().models}
        same([models["simple"][1], models["simple_ensemble"][1]], ["READY", "READY"])


@checks
def infer(server: Server) -> None:
    with grpc_client(server) as client:
        result = client.infer("simple", pair(triton), outputs=outputs(triton), request_id="42", client_timeout=20)
        summed(result)
        answer = result.get_response()
        same([answer.id, answer.model_name, answer.model_version], ["42", "simple", "1"])
        summed(client.infer("simple", pair(triton), model_version="1"))
        some = client.infer("simple", pair(triton), outputs=outputs(triton, "OUTPUT1"))
        same([some.as_numpy("OUTPUT0") is None, some.as_numpy("OUTPUT1")[0, 3]], [True, 2])
        rows = np.arange(128, dtype=np.int32).reshape(8, 16)
        summed(client.infer("simple", pair(triton, rows, rows)), rows, rows)
        doubled = client.infer("simple_ensemble", pair(triton))
        same(doubled.as_numpy("OUTPUT0").tolist(), (2 * RAMP).tolist())
        same(doubled.as_numpy("OUTPUT1").tolist(), (2 * ONES).tolist())


@checks
def many_with_ids(server: Server) -> None:
    """Requests with ids, each answered as itself, over several connections."""
    for _ in range(3):
        with grpc_client(server) as client:
            for number in range(20):
                rows = np.full((1, 16), number, np.int32)
                result = client.infer("simple", pair(triton, rows), request_id=f"r{number}", client_timeout=20)
                summed(result, rows)
                same(result.get_response().id, f"r{number}")


@checks
def async_infer(server: Server) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        for number in range(32):
            rows = np.full((1, 16), number, np.int32)
            client.async_infer(
                "simple", pair(triton, rows), lambda result, error: found.put(error or result), request_id=str(number)
            )
        results = [found.get(timeout=20) for _ in range(32)]
        values = {result.get_response().id: int(result.as_numpy("OUTPUT0")[0, 0]) for result in results}
        same(values, {str(number): number + 1 for number in range(32)})


def _seconds(value: float) -> Any:
    return one(triton, "SECONDS", np.array([value], np.float32), "FP32")


@checks
def cancellation(server: Server) -> None:
    """A model hears of it, and is free for the next request."""
    found: queue.Queue[Any] = queue.Queue()
    for _ in range(6):  # connections, which end in all processes of the server
        with grpc_client(server) as client:
            call = client.async_infer("patience", [_seconds(25)], lambda result, error: found.put(error))
            time.sleep(0.1)
            call.cancel()
            same(found.get(timeout=20).status(), "StatusCode.CANCELLED")
    with grpc_client(server) as client:
        same(client.infer("patience", [_seconds(0)], client_timeout=10).as_numpy("SLEPT").tolist(), [0])


@checks
def deadlines(server: Server) -> None:
    with grpc_client(server) as client:
        fails("DEADLINE_EXCEEDED", "", lambda: client.infer("patience", [_seconds(5)], client_timeout=0.2))
        found: queue.Queue[Any] = queue.Queue()
        client.async_infer("patience", [_seconds(5)], lambda result, error: found.put(error), client_timeout=0.2)
        same(found.get(timeout=20).status(), "StatusCode.DEADLINE_EXCEEDED")
        same(client.infer("patience", [_seconds(0)], client_timeout=20).as_numpy("SLEPT").tolist(), [0])


@checks
def options_of_a_request(server: Server) -> None:
    with grpc_client(server) as client:
        own = {"text": "x", "number": 3, "flag": True, "part": 0.5}
        summed(client.infer("simple", pair(triton), priority=1, timeout=5_000_000, parameters=own))
        summed(client.infer("simple", pair(triton), headers={"x-own": "1", "traceparent": "00-" + "1" * 32 + "-1"}))


@checks
def compression(server: Server) -> None:
    with grpc_client(server) as client:
        for how in ("gzip", "deflate"):
            summed(client.infer("simple", pair(triton), compression_algorithm=how))


@checks
def refusals(server: Server) -> None:
    good = pair(triton)
    with grpc_client(server) as client:
        cases: list[tuple[str, str, Any]] = [
            ("NOT_FOUND", "Request for unknown model: 'nope' is not found", ("nope", good)),
            ("NOT_FOUND", "version 9 is not found", ("simple", good, "9")),
            ("INVALID_ARGUMENT", "failed to get model version from specified version string", ("simple", good, "x")),
            ("INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs for model 'simple'", ("simple", good[:1])),
            ("UNIMPLEMENTED", "doesn't support models with decoupled transaction policy", ("repeat_int32", _repeat())),
        ]
        for status, text, arguments in cases:
            fails(status, text, partial(client.infer, *arguments))
        wide = np.zeros((1, 17), np.int32)
        fails("INVALID_ARGUMENT", "INPUT0", lambda: client.infer("simple", pair(triton, wide)))
        many = np.zeros((9, 16), np.int32)
        fails("INVALID_ARGUMENT", "8", lambda: client.infer("simple", pair(triton, many, many)))
        fails("INVALID_ARGUMENT", "OUTPUT7", lambda: client.infer("simple", good, outputs=outputs(triton, "OUTPUT7")))
        summed(client.infer("simple", good))


def _repeat() -> list[Any]:
    return [
        one(triton, "IN", np.array([1], np.int32), "INT32"),
        one(triton, "DELAY", np.array([0], np.uint32), "UINT32"),
        one(triton, "WAIT", np.array([0], np.uint32), "UINT32"),
    ]


@checks
def texts(server: Server) -> None:
    numbers = np.array([[str(number).encode() for number in range(16)]], dtype=np.object_)
    ones = np.array([["1"] * 16], dtype=np.object_)
    with grpc_client(server) as client:
        result = client.infer("simple_string", pair(triton, numbers, ones), outputs=outputs(triton))
        same([int(text) for text in result.as_numpy("OUTPUT0")[0]], list(range(1, 17)))
        same([int(text) for text in result.as_numpy("OUTPUT1")[0]], list(range(-1, 15)))
        words = np.array([["", "grün", "a" * 5000, "nul\0inside"]], dtype=np.object_)
        back = client.infer("simple_identity", [one(triton, "INPUT0", words, "BYTES")]).as_numpy("OUTPUT0")
        same([word.decode() for word in back[0]], words[0].tolist())


@checks
def classification(server: Server) -> None:
    image = np.zeros((2, 3, 8, 8), np.float32)
    image[0, 1], image[0, 2], image[1, 0] = 0.75, 0.25, 1
    with grpc_client(server) as client:
        metadata, config = client.get_model_metadata("colours"), client.get_model_config("colours").config
        same([list(metadata.inputs[0].shape), config.input[0].format], [[-1, 3, 8, 8], 2])
        wanted = outputs(triton, "scores", class_count=2)
        found = client.infer("colours", [one(triton, "image", image, "FP32")], outputs=wanted).as_numpy("scores")
        same([text.decode().split(":")[1:] for text in found[0]], [["1", "green"], ["2", "blue"]])
        same(found[1][0].decode(), "1.000000:0:red")


@checks
def typed_contents(server: Server) -> None:
    """Requests with typed elements through the client's own stubs; raw answers."""
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="simple")
        for name, array in (("INPUT0", RAMP), ("INPUT1", ONES)):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16]).contents.int_contents[:] = array[0].tolist()
        answer = stub.ModelInfer(request, timeout=20)
        same([len(answer.raw_output_contents), len(answer.outputs[0].contents.int_contents)], [2, 0])
        summed(triton.InferResult(answer))
        texts = service_pb2.ModelInferRequest(model_name="simple_identity")
        texts.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 2]).contents.bytes_contents[:] = [b"ab", b""]
        back = triton.InferResult(stub.ModelInfer(texts, timeout=20)).as_numpy("OUTPUT0")
        same(back.tolist(), [[b"ab", b""]])
        floats = service_pb2.ModelInferRequest(model_name="colours")
        image = floats.inputs.add(name="image", datatype="FP32", shape=[1, 3, 8, 8])
        image.contents.fp32_contents[:] = [0.5] * 192
        same(triton.InferResult(stub.ModelInfer(floats, timeout=20)).as_numpy("scores").tolist(), [[0.5] * 3])
        request.raw_input_contents.append(RAMP.tobytes())
        _refused(stub, request, "contents field must not be specified when using raw_input_contents for 'INPUT0'")


def _refused(stub: Any, request: Any, text: str) -> None:
    try:
        stub.ModelInfer(request, timeout=20)
    except grpc.RpcError as error:
        same([error.code(), text in str(error.details())], [grpc.StatusCode.INVALID_ARGUMENT, True])
    else:
        raise AssertionError("was accepted")


@checks
def raw_stubs(server: Server) -> None:
    """The way without the client's classes: messages, stubs and bytes."""
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        same(stub.ServerLive(service_pb2.ServerLiveRequest()).live, True)
        same(stub.ServerReady(service_pb2.ServerReadyRequest()).ready, True)
        same(stub.ModelReady(service_pb2.ModelReadyRequest(name="simple", version="")).ready, True)
        same(stub.ServerMetadata(service_pb2.ServerMetadataRequest()).name, "triton")
        same(stub.ModelConfig(service_pb2.ModelConfigRequest(name="simple")).config.backend, "onnxruntime")
        request = service_pb2.ModelInferRequest(model_name="simple", model_version="", id="my request id")
        for name in ("INPUT0", "INPUT1"):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            request.raw_input_contents.append(RAMP.tobytes())
        request.outputs.add(name="OUTPUT0")
        answer = stub.ModelInfer(request)
        same([output.name for output in answer.outputs], ["OUTPUT0"])
        same(np.frombuffer(answer.raw_output_contents[0], np.int32).tolist(), (2 * RAMP)[0].tolist())
        same(answer.id, "my request id")


@checks
def health_service(server: Server) -> None:
    """`grpc.health.v1`, as load balancers ask for it: for the server as a whole."""
    with grpc.insecure_channel(server.grpc) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        same(check(b"", timeout=20), b"\x08\x01")


@checks
def statistics(server: Server) -> None:
    with grpc_client(server) as client:
        before = client.get_inference_statistics("simple").model_stats[0]
        for _ in range(10):
            with grpc_client(server) as other:
                summed(other.infer("simple", pair(triton)))
        (after,) = client.get_inference_statistics("simple", "1").model_stats
        same(after.inference_count - before.inference_count, 10)
        same(after.inference_stats.success.count - before.inference_stats.success.count, 10)
        if not (
            after.inference_stats.queue.ns > 0 and after.inference_stats.compute_infer.ns > 0 and after.batch_stats
        ):
            raise AssertionError(after)
        failed = after.inference_stats.fail.count
        fails("INVALID_ARGUMENT", "", lambda: client.infer("simple", pair(triton)[:1]))
        every = client.get_inference_statistics(as_json=True)["model_stats"]
        same({"simple", "simple_ensemble", "repeat_int32"} <= {one["name"] for one in every}, True)
        if client.get_inference_statistics("simple").model_stats[0].inference_stats.fail.count < failed:
            raise AssertionError("failures went back")


@checks
def a_closed_client(server: Server) -> None:
    client = triton.InferenceServerClient(server.grpc)
    client.close()
    try:
        client.is_server_live()
    except (ValueError, InferenceServerException):
        return
    raise AssertionError("answered")
