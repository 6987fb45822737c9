"""The first run of a model."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support import onnxmodels
from tidemill.errors import Invalid
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.runtimes.onnx import OnnxRuntime
from tidemill.inference.warmup import warm_up


def load(data: bytes) -> OnnxRuntime:
    return OnnxRuntime.load({"model.onnx": data}, Settings())


def pool(size: int) -> bytes:
    """y = x [n, 1, height, width] without a border: images smaller than `size` are refused."""
    node = helper.make_node("Conv", ["x", "kernel"], ["y"], kernel_shape=[size, size])
    kernel = numpy_helper.from_array(np.ones((1, 1, size, size), np.float32), "kernel")
    inputs, outputs = [onnxmodels.tensor("x", shape=["n", 1, "h", "w"])], [onnxmodels.tensor("y", shape=None)]
    return bytes(onnxmodels.model([node], inputs, outputs, [kernel]).SerializeToString())


@pytest.mark.parametrize("data", [onnxmodels.scale(2), onnxmodels.identity(8), onnxmodels.sums(), pool(1), pool(30)])
def test_finds_a_size_that_runs(data: bytes) -> None:
    assert warm_up(load(data)) == ""


def test_model_that_cannot_run_on_its_own_shapes_is_refused() -> None:
    with pytest.raises(Invalid, match="zeros of its own signature"):
        warm_up(load(onnxmodels.misfit()))


def test_model_whose_sizes_cannot_be_guessed_is_not_held_to_it() -> None:
    runtime = load(onnxmodels.misfit(shape=("n", "m")))
    assert "Reshape" in warm_up(runtime)
    (y,) = runtime.run({"x": np.ones((5, 3), np.float32)}, ["y"])
    assert y.shape == (3, 5)
