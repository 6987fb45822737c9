"""A script for the tritonclient environment: sequences over one stream and over single calls; tells what it saw."""

import json
import queue
import random
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def inputs(x: int) -> list[Any]:
    """The input of all models."""
    tensor = triton.InferInput("x", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[x]], np.int32))
    return [tensor]


def streamed(client: Any, model: str, output: str, requests: list[Any]) -> dict[str, Any]:
    """What one stream answers to (id of the sequence, x, flags), by request id: an output's elements, or the error."""
    replies: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    found: dict[str, Any] = {}
    errors = 0
    for number, (sequence, x, flags) in enumerate(requests):
        client.async_stream_infer(
            model,
            inputs(x),
            request_id=str(number),
            sequence_id=sequence,
            sequence_start="s" in flags,
            sequence_end="e" in flags,
        )
    for _ in requests:
        result, error = replies.get(timeout=30)
        if error is not None:
            found[f"error {errors}"] = str(error.message())
            errors += 1
        else:
            found[result.get_response().id] = result.as_numpy(output).ravel().tolist()
    client.stop_stream()
    return found


def unary(client: Any, model: str, requests: list[Any]) -> list[Any]:
    """The same by single calls, one after the other."""
    found: list[Any] = []
    for sequence, x, flags in requests:
        try:
            result = client.infer(
                model, inputs(x), sequence_id=sequence, sequence_start="s" in flags, sequence_end="e" in flags
            )
        except InferenceServerException as error:
            found.append(str(error.message()))
        else:
            found.append(int(result.as_numpy("sum")[0, 0]))
    return found


def mixed(random_: random.Random) -> list[Any]:
    """Requests of more sequences than there are slots, half of them with texts for ids, each in its order."""
    queues = []
    for number in range(1, 25):
        sequence: int | str = number if number % 2 else f"name-{number}"
        length = random_.randint(1, 8)
        queues.append(
            [(sequence, random_.randint(-9, 9), "s" * (not at) + "e" * (at == length - 1)) for at in range(length)]
        )
    found = []
    while queues:
        chosen = random_.choice(queues)
        found.append(chosen.pop(0))
        queues = [requests for requests in queues if requests]
    return found


def main(address: str) -> None:
    seen: dict[str, Any] = {}
    requests = mixed(random.Random(7))
    seen["sent"] = requests
    with triton.InferenceServerClient(address) as client:
        for model in ("direct", "oldest", "python"):
            seen[model] = streamed(client, model, "sum", requests)
        seen["told"] = streamed(client, "told", "seen", [(5, 1, "s"), (5, 2, ""), (5, 3, "e"), (5, 4, "")])
        seen["unary"] = unary(
            client, "direct", [(9, 1, "s"), (9, 2, ""), ("nine", 5, "se"), (9, 3, "e"), (9, 4, ""), (0, 1, "s")]
        )
        seen["text for a number"] = streamed(client, "told", "seen", [("five", 1, "s")])
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
