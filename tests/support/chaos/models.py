"""Models in Python that misbehave in known ways."""

CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }
"""
_EXECUTE = """
import os
import signal
import subprocess
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            {before}
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", x)]))
        return responses
"""


def crashing(every: int, *, parent: bool = False) -> dict[str, str]:
    """Files of a model that gives back x, and dies of a segmentation fault when x[0, 1] is a multiple of `every`.

    Args:
        parent: kill the process that started it as well.
    """
    victims = "(os.getppid(), os.getpid())" if parent else "(os.getpid(),)"
    before = f"[os.kill(pid, signal.SIGSEGV) for pid in {victims}] if x[0, 1] % {every} == 0 else None"
    return {"config.pbtxt": CONFIG, "1/model.py": _EXECUTE.format(before=before)}


def slow(seconds: float, config: str = "") -> dict[str, str]:
    """Files of a model that gives back x after so many seconds, one call at a time."""
    return {"config.pbtxt": CONFIG + config, "1/model.py": _EXECUTE.format(before=f"time.sleep({seconds})")}


def leaving() -> dict[str, str]:
    """Files of a model that gives back x, and leaves a process behind for each call, out of its own session."""
    return {
        "config.pbtxt": CONFIG,
        "1/model.py": _EXECUTE.format(before='subprocess.Popen(["sleep", "1000"], start_new_session=True)'),
    }
