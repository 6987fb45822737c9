"""Writes the models, the requests of the load generator, and what is right: `models.py FOLDER MODEL...`."""

import struct
import sys
from pathlib import Path

PROTO = """
syntax = "proto3";
package inference;
service GRPCInferenceService { rpc ModelInfer(ModelInferRequest) returns (ModelInferResponse); }
message Tensor { string name = 1; string datatype = 2; repeated int64 shape = 3; }
message ModelInferRequest {
  string model_name = 1; string model_version = 2; string id = 3;
  repeated Tensor inputs = 5; repeated bytes raw_input_contents = 7;
}
message Output { string name = 1; string datatype = 2; repeated int64 shape = 3; Contents contents = 5; }
message Contents { repeated float fp32_contents = 6; }
message ModelInferResponse {
  string model_name = 1; string model_version = 2; string id = 3;
  repeated Output outputs = 5; repeated bytes raw_output_contents = 6;
}
"""


def build(name):
    """The ONNX model of this name, with fixed random weights."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(7)

    def weights(label, *shape):
        scale = np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])
        return numpy_helper.from_array((random.standard_normal(shape) / scale).astype(np.float32), label)

    node = helper.make_node
    if name == "mlp":
        shape, out = (64,), (10,)
        held = [weights("w1", 64, 128), weights("b1", 128), weights("w2", 128, 10), weights("b2", 10)]
        nodes = [node("Gemm", ["x", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"])]
        nodes += [node("Gemm", ["r", "w2", "b2"], ["y"])]
    elif name == "cnn":
        shape, out = (1, 28, 28), (10,)
        held = [weights("k1", 32, 1, 3, 3), weights("k2", 64, 32, 3, 3)]
        held += [weights("w1", 9216, 128), weights("b1", 128), weights("w2", 128, 10), weights("b2", 10)]
        nodes = [node("Conv", ["x", "k1"], ["c1"]), node("Relu", ["c1"], ["r1"]), node("Conv", ["r1", "k2"], ["c2"])]
        nodes += [node("Relu", ["c2"], ["r2"]), node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2])]
        nodes += [node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r3"])]
        nodes += [node("Gemm", ["r3", "w2", "b2"], ["y"])]
    else:
        shape, out, held = (1 << 18,), (1 << 18,), []
        nodes = [node("Identity", ["x"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *out])
    graph = helper.make_graph(nodes, name, [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString(), random.random((1, *shape)).astype(np.float32)


def main(folder, names):
    """Write everything for the models of these names."""
    import numpy as np
    import onnxruntime
    from grpc_tools import protoc

    (folder / "oip.proto").write_text(PROTO)
    if protoc.main(["", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}", "oip.proto"]):
        sys.exit("protoc failed")
    sys.path.insert(0, str(folder))
    import oip_pb2

    for name in names:
        model, x = build(name)
        (folder / f"{name}.onnx").write_bytes(model)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        np.save(folder / f"{name}.npy", session.run(None, {"x": x})[0])
        request = oip_pb2.ModelInferRequest(model_name=name)
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        request.raw_input_contents.append(x.tobytes())
        body = request.SerializeToString()
        (folder / f"{name}.req").write_bytes(b"\0" + struct.pack(">I", len(body)) + body)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
