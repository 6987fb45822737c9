"""KServe's Python server with a model of ours around ONNX Runtime."""

import sys
from pathlib import Path

PACKAGES = ["kserve", "onnxruntime"]


def main(folder: Path, port: int) -> None:
    """Serve the models in `folder` on `port`, and HTTP on the next one."""
    import onnxruntime
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class Onnx(Model):
        def __init__(self, path: Path) -> None:
            super().__init__(path.stem)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.ready = True

        async def predict(self, payload, headers=None, response_headers=None):
            """Run the one input, give the one output."""
            given = payload.inputs[0]
            (y,) = self._session.run(None, {given.name: given.as_numpy()})
            output = InferOutput("y", list(y.shape), "FP32")
            output.set_data_from_numpy(y)
            return InferResponse(payload.id or "1", self.name, [output])

    sys.argv[1:] = []
    ModelServer(http_port=port + 1, grpc_port=port, workers=1).start([Onnx(path) for path in folder.glob("*.onnx")])
