"""Sequences of real clients, on a server that serves a model repository."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.sequences import accumulator, told
from tests.support.venvs import ROOT, venv
from tidemill.clients.inference import InferenceClient
from tidemill.inference.app import build
from tidemill.inference.config import InferenceConfig

pytestmark = pytest.mark.timeout(600)

SUMS = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_INT32 dims: 1 }}
output {{ name: "sum" data_type: TYPE_INT32 dims: 1 }}
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  {strategy}
  state {{ input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: 1 }}
}}
"""
TOLD = """
name: "told"
backend: "onnxruntime"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output [ { name: "seen" data_type: TYPE_INT32 dims: 4 }, { name: "id" data_type: TYPE_UINT64 dims: 1 } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } },
    { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } },
    { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } },
    { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  ]
}
"""
PYTHON = """
name: "python"
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "sum" data_type: TYPE_INT32 dims: 1 }
instance_group { count: 2 kind: KIND_CPU }
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 3 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
}
"""
PROGRAM = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.add(request) for request in requests]

    def add(self, request):
        x, start = (pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0, 0] for name in ("x", "START"))
        name = request.correlation_id()
        self.sums[name] = int(x) if start else self.sums[name] + int(x)
        total = np.array([[self.sums[name]]], np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("sum", total)])
"""
MODELS = {
    "direct": (SUMS.format(name="direct", strategy="direct {}"), "model.onnx", accumulator()),
    "oldest": (
        SUMS.format(name="oldest", strategy="oldest { max_candidate_sequences: 4 }"),
        "model.onnx",
        accumulator(),
    ),
    "python": (PYTHON, "model.py", PROGRAM.encode()),
    "told": (TOLD, "model.onnx", told()),
}


async def test_sequences_of_tritonclient(tmp_path: Path) -> None:
    python = await asyncio.to_thread(venv, "tritonclient")
    for name, (configuration, file, model) in MODELS.items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(configuration)
        (tmp_path / name / "1" / file).write_bytes(model)
    app = build(InferenceConfig(fronts=1, port=0, second_port=None, ops_port=0, model_repository=str(tmp_path)))
    await app.start()
    try:
        async with InferenceClient(app.address) as client:
            index = {entry.name: (entry.state, entry.reason) for entry in await client.index()}
            assert index == dict.fromkeys(MODELS, ("READY", ""))
        script = ROOT / "tests" / "support" / "triton_sequences.py"
        process = await asyncio.create_subprocess_exec(
            str(python), "-W", "error", str(script), app.address, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, err.decode()
    finally:
        await app.stop(grace=1)
    seen = json.loads(out)
    assert seen["direct"] == seen["oldest"] == seen["python"] == _sums(seen["sent"])
    assert seen["told"] == {
        "0": [1, 1, 1, 0],
        "1": [2, 0, 1, 0],
        "2": [3, 0, 1, 1],
        "error 0": "inference request for sequence 5 to model 'told' must specify the START flag on the first request "
        "of the sequence",
    }
    assert seen["unary"] == [
        1,
        3,
        5,
        6,
        "inference request for sequence 9 to model 'direct' must specify the START flag on the first request of the "
        "sequence",
        "inference request to model 'direct' must specify a non-zero or non-empty correlation ID",
    ]
    assert seen["text for a number"] == {
        "error 0": "inference request to model 'told' has a string correlation ID, but the model's CORRID control is "
        "of type UINT64"
    }


def _sums(sent: list[list[object]]) -> dict[str, list[int]]:
    """The sum of each sequence so far, by request id."""
    sums: dict[object, int] = {}
    found = {}
    for number, (sequence, x, flags) in enumerate(sent):
        assert isinstance(x, int)
        sums[sequence] = x if "s" in str(flags) else sums[sequence] + x
        found[str(number)] = [sums[sequence]]
    return found
