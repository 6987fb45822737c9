"""One model for each runtime, for the tests of what every runtime promises: y = 2 * x, of FP32 [n, 2]."""

from collections.abc import Mapping

from tests.support import onnxmodels


def samples() -> Mapping[str, Mapping[str, bytes]]:
    """Name of a runtime -> the files of an artifact that it can load."""
    return {"onnx": {"model.onnx": onnxmodels.scale(2), "card.txt": b"doubles"}}
