"""Versions of the registry that bring a configuration with them."""

from pathlib import Path

import numpy as np

from tests.support import onnxmodels
from tests.support.inference import Platform

CONFIG = b"""
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }
"""


async def test_configuration_of_an_artifact_counts_and_is_not_trusted(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform, platform.inference(second_port=None) as serving:
        good = {"model.onnx": onnxmodels.scale(2), "config.pbtxt": CONFIG, "labels.txt": b"a\nb\n"}
        await platform.publish("good", good)
        await serving.serves("good")
        result = await serving.client.infer("good", {"x": np.ones((8, 2), np.float32)})
        assert result.outputs["y"].shape == (8, 2)
        metadata = await serving.client.metadata("good")
        assert list(metadata.inputs[0].shape) == [-1, 2]
        program = b'backend: "python"'
        refused = {
            "program": {"model.py": b"raise SystemExit", "config.pbtxt": program},
            "disguised": {"model.onnx": onnxmodels.scale(2), "config.pbtxt": program},
            "broken": {"model.onnx": onnxmodels.scale(2), "config.pbtxt": b"nonsense {"},
            "without_labels": {"model.onnx": onnxmodels.scale(2), "config.pbtxt": CONFIG},
        }
        for model, files in refused.items():
            await platform.publish(model, files, format="python" if model == "program" else "onnx")
        assert "operator's own repository only" in await serving.reason("program", 1)
        assert "format is onnx" in await serving.reason("disguised", 1)
        assert "config.pbtxt cannot be read" in await serving.reason("broken", 1)
        assert "names 'labels.txt', which is not there" in await serving.reason("without_labels", 1)
        assert await serving.client.model_ready("good")
