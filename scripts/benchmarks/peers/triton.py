"""Triton with its Python backend, from the package that carries its binaries."""

from pathlib import Path

PACKAGES = ["nvidia-pytriton", "onnxruntime"]
PYTHON = "/usr/bin/python3"
"""Its backend is linked against the system's Python."""


def main(folder: Path, port: int) -> None:
    """Serve the models in `folder` on `port`."""
    import numpy as np
    import onnxruntime
    from pytriton.decorators import batch
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    def runner(session):
        @batch
        def infer(x):
            return {"y": session.run(None, {"x": x})[0]}

        return infer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    config = TritonConfig(
        grpc_port=port, http_port=port + 1, metrics_port=port + 2, grpc_address="127.0.0.1", http_address="127.0.0.1"
    )
    with Triton(config=config) as triton:
        for path in folder.glob("*.onnx"):
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            (x,), (y,) = session.get_inputs(), session.get_outputs()
            triton.bind(
                model_name=path.stem,
                infer_func=runner(session),
                inputs=[Tensor(name="x", dtype=np.float32, shape=tuple(x.shape[1:]))],
                outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(y.shape[1:]))],
                config=ModelConfig(max_batch_size=64),
            )
        triton.serve()
