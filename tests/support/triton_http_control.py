"""Uses all of the rest of an unmodified tritonclient over HTTP: `triton_http_control.py host:port`; prints JSON."""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

X = np.zeros((100, 100), np.float32)


def infer(client: Any, request: str | None, answer: str | None, *, binary: bool) -> bool:
    """Whether 10,000 zeros come back, compressed in these ways."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary)
    result = client.infer(
        "m",
        [tensor],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=request,
        response_compression_algorithm=answer,
        sequence_id=7,
        sequence_start=True,
        priority=1,
        timeout=1000,
        parameters={"own": "text"},
    )
    return bool((result.as_numpy("y") == X).all())


def shared(client: Any) -> Any:
    """An output in shared memory, as the answer tells of it."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_shared_memory("r", X.nbytes)
    output = triton.InferRequestedOutput("s")
    output.set_shared_memory("r", 8, offset=4)
    return client.infer("shared", [tensor], outputs=[output]).get_output("s")


def failure(call: Any) -> list[str]:
    """Status and text of a call that fails."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return []


def main() -> None:
    """All that is not in the other script."""
    with triton.InferenceServerClient(sys.argv[1]) as client:
        ways = (None, "gzip", "deflate")
        found = {
            "infer": [infer(client, a, b, binary=c) for a in ways for b in ways for c in (True, False)],
            "shared": shared(client),
            "config": client.get_model_config("m", "1"),
            "index": client.get_model_repository_index(),
            "load": client.load_model("m", config="{}", files={"file:1/model.onnx": b"\0\1"}),
            "unload": client.unload_model("m", unload_dependents=True),
            "statistics": client.get_inference_statistics(),
            "of": client.get_inference_statistics("m", "1"),
            "trace": client.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": None}),
            "traced": client.get_trace_settings("m"),
            "log": client.update_log_settings({"log_verbose_level": 1, "log_info": True}),
            "logged": client.get_log_settings(),
            "system": client.register_system_shared_memory("r", "/k", 8, offset=4),
            "systems": client.get_system_shared_memory_status(),
            "cuda": client.register_cuda_shared_memory("r", b"QUJD", 0, 8),
            "cudas": client.get_cuda_shared_memory_status("r"),
            "unregister": [client.unregister_system_shared_memory(), client.unregister_cuda_shared_memory("r")],
            "refusal": failure(lambda: client.load_model("bad")),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
