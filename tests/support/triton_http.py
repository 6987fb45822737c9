"""Asks a model with an unmodified tritonclient over HTTP: `triton_http.py host:port`; prints what came back as JSON."""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

X = np.array([[1.5, 2.0], [3.0, 4.0]], np.float32)


def infer(client: Any, *, binary: bool, outputs: bool) -> list[Any]:
    """2 * X, sent and received as binary data or as JSON."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary)] if outputs else None
    result = client.infer("double", [tensor], outputs=wanted, request_id="7")
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("double", "1", "7")
    found: list[Any] = result.as_numpy("y").tolist()
    return found


def text(client: Any, *, binary: bool) -> list[str]:
    """Strings there and back."""
    tensor = triton.InferInput("x", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(["a", "é"], dtype=object), binary_data=binary)
    result = client.infer("text", [tensor], outputs=[triton.InferRequestedOutput("y", binary_data=binary)])
    return [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy("y").tolist()]


def refusal(client: Any) -> list[str]:
    """Status and text of an error."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    try:
        client.infer("nothing", [tensor])
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return []


def main() -> None:
    """Everything of the protocol that the gateway has."""
    with triton.InferenceServerClient(sys.argv[1]) as client:
        metadata = client.get_model_metadata("double")
        found = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready("double"),
            "version": client.is_model_ready("double", "1"),
            "missing": client.is_model_ready("nothing"),
            "server": client.get_server_metadata()["name"],
            "inputs": metadata["inputs"],
            "outputs": [infer(client, binary=b, outputs=o) for b in (True, False) for o in (True, False)],
            "text": [text(client, binary=b) for b in (True, False)],
            "refusal": refusal(client),
        }
        waiting = [client.async_infer("double", [_tensor()]) for _ in range(8)]
        found["async"] = all((one.get_result().as_numpy("y") == 2 * X).all() for one in waiting)
    json.dump(found, sys.stdout)


def _tensor() -> Any:
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    return tensor


if __name__ == "__main__":
    main()
