"""A script for the tritonclient environment: serves with our stubs and asks with tritonclient, in one process."""

import json
import sys
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton

from tidemill.api.compat.inference import model_config_pb2, service_pb2, service_pb2_grpc


def double(request: service_pb2.ModelInferRequest, _: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
    """Answers with twice the one FP32 input."""
    doubled = np.frombuffer(request.raw_input_contents[0], np.float32) * 2
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
    response.raw_output_contents.append(doubled.tobytes())
    return response


def configure(request: service_pb2.ModelConfigRequest, _: grpc.ServicerContext) -> service_pb2.ModelConfigResponse:
    """Answers with messages of both proto files."""
    config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=8)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    return service_pb2.ModelConfigResponse(config=config)


def main() -> None:
    """Prints what came back to tritonclient and to our own stub, as JSON."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            double,
            request_deserializer=service_pb2.ModelInferRequest.FromString,
            response_serializer=service_pb2.ModelInferResponse.SerializeToString,
        ),
        "ModelConfig": grpc.unary_unary_rpc_method_handler(
            configure,
            request_deserializer=service_pb2.ModelConfigRequest.FromString,
            response_serializer=service_pb2.ModelConfigResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with triton.InferenceServerClient(address) as client, grpc.insecure_channel(address) as channel:
        tensor = triton.InferInput("x", [3], "FP32")
        tensor.set_data_from_numpy(np.array([1, 2, 3], np.float32))
        doubled = client.infer("doubler", [tensor], request_id="7").as_numpy("y").tolist()
        theirs = client.get_model_config("doubler").config
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ours = stub.ModelConfig(service_pb2.ModelConfigRequest(name="doubler")).config
    server.stop(None).wait()
    apart = type(ours) is not type(theirs)
    same = ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    json.dump({"doubled": doubled, "type": theirs.input[0].data_type, "apart": apart, "same": same}, sys.stdout)


if __name__ == "__main__":
    main()
