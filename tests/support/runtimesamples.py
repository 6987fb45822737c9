"""One model for each runtime, for the tests of what every runtime promises: y = 2 * x, of FP32 [n, 2]."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.support import onnxmodels
from tidemill.inference.configuration import Configuration, TensorConfiguration
from tidemill.inference.runtimes.base import Settings
from tidemill.tensors.dtypes import DataType


@cache
def sample(name: str) -> Mapping[str, bytes]:
    """Files of an artifact that the runtime of this name can load."""
    return {"onnx": _onnx, "python": _python, "torchexport": _torchexport, "torchscript": _torchscript}[name]()


def settings(name: str) -> Settings:
    """What it is to be loaded with."""
    if name in ("torchexport", "torchscript"):
        return Settings(trusted=True, configuration=configuration(name))
    if name == "python":
        return Settings(trusted=True, directory=Path("models/m/1"), version="1")
    return Settings()


def configuration(backend: str) -> Configuration:
    """What an owner writes about the model."""
    x, y = (TensorConfiguration(name=name, datatype=DataType.FP32, dims=(-1, 2)) for name in "xy")
    return Configuration(name="m", backend=backend, inputs=(x,), outputs=(y,))


def _onnx() -> Mapping[str, bytes]:
    return {"model.onnx": onnxmodels.scale(2), "card.txt": b"doubles"}


def _python() -> Mapping[str, bytes]:
    from tests.support import pythonmodels

    return {"model.py": pythonmodels.DOUBLE.encode(), "card.txt": b"doubles"}


def _torchexport() -> Mapping[str, bytes]:
    from tests.support import torchmodels

    return {
        "model.pt2": torchmodels.exported(torchmodels.Scale(), (torchmodels.rows(3, 2),), ({0: torchmodels.BATCH},))
    }


def _torchscript() -> Mapping[str, bytes]:
    from tests.support import torchmodels

    return {"model.pt": torchmodels.scripted(torchmodels.Scale()), "card.txt": b"doubles"}
