"""The floor of the transport: a grpcio handler that gives bytes to ONNX Runtime and back, and does nothing else."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGES = ["grpcio", "grpcio-tools", "numpy", "onnxruntime"]


def main(folder: Path, port: int) -> None:
    """Serve the models in `folder` on `port`."""
    import grpc
    import numpy as np
    import onnxruntime

    sys.path.insert(0, str(folder))
    import oip_pb2
    import oip_pb2_grpc

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        path.stem: onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        for path in folder.glob("*.onnx")
    }

    class Servicer(oip_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request, context):
            """Run the one input, give the one output."""
            tensor = request.inputs[0]
            x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(tensor.shape))
            (y,) = sessions[request.model_name].run(None, {tensor.name: x})
            answer = oip_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
            answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
            answer.raw_output_contents.append(y.tobytes())
            return answer

    limit = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.server(ThreadPoolExecutor(2), options=limit)
    oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()
