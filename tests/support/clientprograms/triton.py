"""What the programs with tritonclient share: tensors of the models, and failures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from tests.support.clientprograms.checks import Server, same

RAMP = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), np.int32)


def pair(module: Any, first: Any = RAMP, second: Any = ONES, **how: Any) -> list[Any]:
    """INPUT0 and INPUT1, of numbers or texts."""
    made = []
    for name, array in (("INPUT0", first), ("INPUT1", second)):
        kind = "BYTES" if array.dtype == np.object_ else "INT32"
        made.append(module.InferInput(name, list(array.shape), kind).set_data_from_numpy(array, **how))
    return made


def one(module: Any, name: str, array: Any, kind: str, **how: Any) -> Any:
    """An input."""
    return module.InferInput(name, list(array.shape), kind).set_data_from_numpy(array, **how)


def outputs(module: Any, *names: str, **how: Any) -> list[Any]:
    """Outputs to ask for."""
    return [module.InferRequestedOutput(name, **how) for name in names or ("OUTPUT0", "OUTPUT1")]


def summed(result: Any, first: Any = RAMP, second: Any = ONES) -> None:
    """Raises AssertionError unless a result has the sum and the difference."""
    same(result.as_numpy("OUTPUT0").tolist(), (first + second).tolist())
    same(result.as_numpy("OUTPUT1").tolist(), (first - second).tolist())


def fails(status: str, text: str, call: Callable[[], Any]) -> None:
    """Raises AssertionError unless the call fails with this status and a message that contains the text."""
    try:
        call()
    except InferenceServerException as error:
        found = str(error.status()).removeprefix("StatusCode.")
        if found != status or text not in error.message():
            raise AssertionError(f"failed with {found}: {error.message()}") from error
    else:
        raise AssertionError(f"did not fail with {status}: {text}")


@contextmanager
def grpc_client(server: Server, **options: Any) -> Iterator[Any]:
    """A client over gRPC, with a connection of its own: it may end in any process of the server."""
    import tritonclient.grpc as triton

    if "keepalive_options" not in options:
        options["channel_args"] = [("grpc.use_local_subchannel_pool", 1)]
    with triton.InferenceServerClient(server.grpc, **options) as client:
        yield client
