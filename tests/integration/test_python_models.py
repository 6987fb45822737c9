"""A server over a repository with models in Python, and with others in processes of their own."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnxmodels, pythonmodels
from tests.support.modelfolders import Folder, factor, serve_folder
from tests.support.wait import until
from tidemill.errors import Unavailable

PAIR = "".join(
    f'{side} {{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }}\n'
    for side, name in (("input", "INPUT0"), ("input", "INPUT1"), ("output", "OUTPUT0"), ("output", "OUTPUT1"))
)
ADD_SUB = 'name: "add_sub"\nbackend: "python"\n' + PAIR
BLS = 'backend: "python"\ninput { name: "MODEL_NAME" data_type: TYPE_STRING dims: [ 1 ] }\n' + PAIR
ERRORS = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
APART = 'backend: "onnxruntime"\nparameters { key: "isolation" value { string_value: "process" } }\n'
A, B = np.array([1, 2, 3, 4], np.float32), np.array([5, 5, 5, 5], np.float32)


async def test_models_in_python_run_unchanged_and_call_each_other(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("add_sub", {"config.pbtxt": ADD_SUB, "1/model.py": pythonmodels.ADD_SUB})
    folder.put("bls", {"config.pbtxt": BLS, "1/model.py": pythonmodels.BLS})
    folder.put("double", {"1/model.py": pythonmodels.DOUBLE})
    folder.put("broken", {"config.pbtxt": ADD_SUB.replace("add_sub", "broken"), "1/model.py": "import no_such_module"})
    async with serve_folder(tmp_path) as serving:
        client = serving.client
        for model in ("add_sub", "bls", "double"):
            await until(partial(client.model_ready, model), what=model)
        result = await client.infer("add_sub", {"INPUT0": A, "INPUT1": B})
        np.testing.assert_array_equal(result.outputs["OUTPUT1"], A - B)
        name = np.array([b"add_sub"], object)
        result = await client.infer("bls", {"INPUT0": A, "INPUT1": B, "MODEL_NAME": name})
        np.testing.assert_array_equal(result.outputs["OUTPUT0"], A + B)
        assert await factor(serving, "double") == (2, "1")
        assert not await client.model_ready("broken")


async def test_a_model_that_crashes_takes_nobody_with_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("errors", {"config.pbtxt": ERRORS, "1/model.py": pythonmodels.ERRORS})
    folder.version("apart", 1, onnxmodels.scale(3), APART)
    folder.version("here", 1, onnxmodels.scale(4))
    async with serve_folder(tmp_path) as serving:
        client = serving.client
        for model in ("errors", "apart", "here"):
            await until(partial(client.model_ready, model), what=model)
        with pytest.raises(Unavailable, match="SIGSEGV"):
            await client.infer("errors", {"x": np.array([-3], np.float32)})
        assert await factor(serving, "apart") == (3, "1")
        assert await factor(serving, "here") == (4, "1")

        async def answers() -> bool:
            try:
                result = await client.infer("errors", {"x": np.array([1], np.float32)})
            except Unavailable:
                return False
            return bool(result.outputs["y"][0] == 2)

        await until(answers)
