"""The models that clients are tried on: those of their own examples, in spirit, in a directory of Triton's layout."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.modelfolders import Folder
from tests.support.onnxmodels import model, tensor

MODELS = (
    "simple",
    "simple_ensemble",
    "simple_string",
    "simple_identity",
    "simple_sequence",
    "simple_told",
    "repeat_int32",
    "patience",
    "colours",
    "prompt",
)
"""What is loaded at the start; `late` is there too."""


def write(root: Path) -> Path:
    """Write all of them. Returns the repository."""
    folder = Folder(root)
    folder.version("simple", 1, sums(), SIMPLE)
    folder.version("simple_string", 1, text_sums(), STRING)
    folder.version("simple_identity", 1, identity(), IDENTITY)
    folder.version("simple_sequence", 1, accumulator(), SEQUENCE)
    folder.version("simple_told", 1, told(), TOLD)
    folder.version("colours", 1, colours(), COLOURS)
    folder.put("colours", {"labels.txt": "red\ngreen\nblue\n"})
    folder.put("simple_ensemble", {"config.pbtxt": ENSEMBLE, "1/.keep": b""})
    folder.put("repeat_int32", {"config.pbtxt": REPEAT, "1/model.py": REPEAT_PROGRAM})
    folder.put("patience", {"config.pbtxt": PATIENCE, "1/model.py": PATIENCE_PROGRAM})
    folder.put("prompt", {"config.pbtxt": PROMPT, "1/model.py": PROMPT_PROGRAM})
    folder.version("late", 1, sums(), SIMPLE.replace("dynamic_batching { max_queue_delay_microseconds: 200 }", ""))
    folder.version("late", 3, sums())
    return folder.root


def sums() -> bytes:
    """OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1, INT32 [n, 16]."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    return _bytes(nodes, dict.fromkeys(("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"), (TensorProto.INT32, 16)))


def text_sums() -> bytes:
    """The same for numbers written as texts."""
    nodes = [
        helper.make_node("Cast", [f"INPUT{index}"], [f"number{index}"], to=TensorProto.INT32) for index in range(2)
    ]
    for index, operation in enumerate(("Add", "Sub")):
        nodes += [
            helper.make_node(operation, ["number0", "number1"], [f"result{index}"]),
            helper.make_node("Cast", [f"result{index}"], [f"OUTPUT{index}"], to=TensorProto.STRING),
        ]
    return _bytes(nodes, dict.fromkeys(("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"), (TensorProto.STRING, 16)))


def identity() -> bytes:
    """OUTPUT0 = INPUT0, texts [n, m]."""
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    return _bytes([node], {"INPUT0": (TensorProto.STRING, "m"), "OUTPUT0": (TensorProto.STRING, "m")})


def accumulator() -> bytes:
    """OUTPUT = the sum of a sequence's INPUTs so far, INT32 [n, 1]."""
    nodes = [
        helper.make_node("Add", ["INPUT", "before"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["after"]),
    ]
    return _bytes(nodes, dict.fromkeys(("INPUT", "before", "OUTPUT", "after"), (TensorProto.INT32, 1)))


def told() -> bytes:
    """OUTPUT = [INPUT, START, END] of each request, INT32 [n, 3]."""
    node = helper.make_node("Concat", ["INPUT", "START", "END"], ["OUTPUT"], axis=1)
    return _bytes([node], {**dict.fromkeys(node.input, (TensorProto.INT32, 1)), "OUTPUT": (TensorProto.INT32, 3)})


def colours() -> bytes:
    """scores = the mean of each channel of images [n, 3, 8, 8]."""
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    node = helper.make_node("ReduceMean", ["image", "axes"], ["scores"], keepdims=0)
    image = tensor("image", TensorProto.FLOAT, ("n", 3, 8, 8))
    return bytes(model([node], [image], [tensor("scores", TensorProto.FLOAT, ("n", 3))], [axes]).SerializeToString())


def _bytes(nodes: list[Any], tensors: dict[str, tuple[int, Any]]) -> bytes:
    """A model of these nodes: outputs are those tensors that a node makes."""
    made = {name for node in nodes for name in node.output}
    declared = {name: tensor(name, kind, ("n", width)) for name, (kind, width) in tensors.items()}
    inputs = [one for name, one in declared.items() if name not in made]
    outputs = [one for name, one in declared.items() if name in made]
    return bytes(model(nodes, inputs, outputs).SerializeToString())


def _pairs(kind: str) -> str:
    inputs = ", ".join(f'{{ name: "INPUT{index}" data_type: {kind} dims: 16 }}' for index in range(2))
    outputs = ", ".join(f'{{ name: "OUTPUT{index}" data_type: {kind} dims: 16 }}' for index in range(2))
    return f"max_batch_size: 8 input [ {inputs} ] output [ {outputs} ]\n"


ONNX = 'platform: "onnxruntime_onnx"\n'
SIMPLE = ONNX + _pairs("TYPE_INT32") + "dynamic_batching { max_queue_delay_microseconds: 200 }\n"
STRING = ONNX + _pairs("TYPE_STRING")
IDENTITY = ONNX + (
    'max_batch_size: 8 input { name: "INPUT0" data_type: TYPE_STRING dims: -1 }\n'
    'output { name: "OUTPUT0" data_type: TYPE_STRING dims: -1 }\n'
)
SEQUENCE = ONNX + dedent("""
    max_batch_size: 8
    input { name: "INPUT" data_type: TYPE_INT32 dims: 1 }
    output { name: "OUTPUT" data_type: TYPE_INT32 dims: 1 }
    sequence_batching {
      max_sequence_idle_microseconds: 60000000
      state { input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: 1 }
    }
""")
TOLD = ONNX + dedent("""
    max_batch_size: 8
    input { name: "INPUT" data_type: TYPE_INT32 dims: 1 }
    output { name: "OUTPUT" data_type: TYPE_INT32 dims: 3 }
    sequence_batching {
      max_sequence_idle_microseconds: 60000000
      oldest { max_candidate_sequences: 4 }
      control_input [
        { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } },
        { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
      ]
    }
""")
COLOURS = ONNX + dedent("""
    max_batch_size: 8
    input { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 8, 8 ] }
    output { name: "scores" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }
""")
ENSEMBLE = (
    'platform: "ensemble"\n'
    + _pairs("TYPE_INT32")
    + dedent("""
    ensemble_scheduling { step [
      { model_name: "simple" model_version: -1
        input_map { key: "INPUT0" value: "INPUT0" } input_map { key: "INPUT1" value: "INPUT1" }
        output_map { key: "OUTPUT0" value: "sum" } output_map { key: "OUTPUT1" value: "difference" } },
      { model_name: "simple" model_version: -1
        input_map { key: "INPUT0" value: "sum" } input_map { key: "INPUT1" value: "difference" }
        output_map { key: "OUTPUT0" value: "OUTPUT0" } output_map { key: "OUTPUT1" value: "OUTPUT1" } }
    ] }
""")
)
"""OUTPUT0 = 2 * INPUT0, OUTPUT1 = 2 * INPUT1."""
REPEAT = dedent("""
    backend: "python"
    input [
      { name: "IN" data_type: TYPE_INT32 dims: -1 },
      { name: "DELAY" data_type: TYPE_UINT32 dims: -1 },
      { name: "WAIT" data_type: TYPE_UINT32 dims: 1 }
    ]
    output [
      { name: "OUT" data_type: TYPE_INT32 dims: 1 },
      { name: "IDX" data_type: TYPE_UINT32 dims: 1 }
    ]
    model_transaction_policy { decoupled: true }
""")
REPEAT_PROGRAM = dedent("""
    import threading
    import time

    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                values, delays, wait = (
                    pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT")
                )
                sender = request.get_response_sender()
                threading.Thread(target=self.respond, args=(sender, values, delays), daemon=True).start()
                time.sleep(int(wait[0]) / 1000)

        def respond(self, sender, values, delays):
            for index, (value, delay) in enumerate(zip(values, delays)):
                time.sleep(int(delay) / 1000)
                out = pb_utils.Tensor("OUT", np.array([value], np.int32))
                position = pb_utils.Tensor("IDX", np.array([index], np.uint32))
                sender.send(pb_utils.InferenceResponse([out, position]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
""")
PATIENCE = dedent("""
    backend: "python"
    input { name: "SECONDS" data_type: TYPE_FP32 dims: 1 }
    output { name: "SLEPT" data_type: TYPE_FP32 dims: 1 }
""")
PATIENCE_PROGRAM = dedent("""
    import time

    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
                end = time.monotonic() + float(seconds[0])
                while time.monotonic() < end and not request.is_cancelled():
                    time.sleep(0.01)
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SLEPT", seconds)]))
            return responses
""")
PROMPT = dedent("""
    backend: "python"
    input { name: "text_input" data_type: TYPE_STRING dims: 1 }
    output { name: "text_output" data_type: TYPE_STRING dims: 1 }
    model_transaction_policy { decoupled: true }
""")
PROMPT_PROGRAM = dedent("""
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                sender = request.get_response_sender()
                text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().ravel()[0].decode()
                for word in text.split():
                    out = pb_utils.Tensor("text_output", np.array([word.upper().encode()], np.object_))
                    sender.send(pb_utils.InferenceResponse([out]))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
""")
