"""MLServer with a runtime of ours around ONNX Runtime, as it has none."""

import json
import os
import socket
import sys
from pathlib import Path

PACKAGES = ["mlserver", "onnxruntime"]
RUNTIME = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Model(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        given = payload.inputs[0]
        (y,) = self._session.run(None, {given.name: NumpyCodec.decode_input(given)})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""


def main(folder: Path, port: int) -> None:
    """Serve the models in `folder` on `port`."""
    root = folder / "mlserver"
    root.mkdir(exist_ok=True)
    (root / "onnxmodel.py").write_text(RUNTIME)
    for path in folder.glob("*.onnx"):
        (root / path.stem).mkdir(exist_ok=True)
        settings = {"name": path.stem, "implementation": "onnxmodel.Model", "parameters": {"uri": str(path)}}
        (root / path.stem / "model-settings.json").write_text(json.dumps(settings))
    server = {"host": "127.0.0.1", "grpc_port": port, "http_port": _free(), "metrics_port": _free()}
    (root / "settings.json").write_text(
        json.dumps({**server, "parallel_workers": 0, "grpc_max_message_length": 64 << 20})
    )
    program = Path(sys.executable).parent / "mlserver"
    os.execve(program, [str(program), "start", str(root)], {**os.environ, "PYTHONPATH": str(root)})


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
