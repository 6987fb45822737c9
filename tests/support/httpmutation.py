"""HTTP requests of the Open Inference Protocol with mistakes in them, the same for the same dice."""

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, "", "x", "é", "\ud800", "\0", "../x",
    "x" * 300, [], [[]], {}, {"a": {}}, [None], [1, "x"], [[1], [2, 3]], "QUJD", {"b64": "QUJD"}, {"b64": 3},
    [2**60, 16], [0], [-1],
]  # fmt: skip
PACK: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
NAMES = [
    "m",
    "x",
    "..",
    "%2e%2e",
    "m%20",
    "é",
    "stats",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "a" * 200,
    "%ff",
    "m:n",
]
DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": "7",
        "parameters": {"sequence_id": 1, "binary_data_output": True, "priority": 2},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4], "parameters": {}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": False, "classification": 1}}],
    },
    {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}}]},
    {"text": "hello", "n": 3, "parameters": {"a": 1}},
    {"parameters": {"config": "{}", "file:1/model.onnx": "QUJD", "unload_dependents": True}},
    {"key": "/k", "offset": 0, "byte_size": 8, "raw_handle": {"b64": "QUJD"}, "device_id": 0},
    {"trace_level": ["OFF"], "trace_rate": "1", "log_info": True, "log_verbose_level": 1, "ready": True},
]


def mutated(dice: random.Random, value: Any, chance: float = 0.15) -> Any:
    """`value` with some of what is in it replaced, removed or doubled."""
    if dice.random() < chance:
        return dice.choice(VALUES)
    if isinstance(value, dict):
        kept = {key: mutated(dice, item, chance) for key, item in value.items() if dice.random() > chance / 3}
        return {
            **kept,
            **({dice.choice(["x", "inputs", "parameters", "\ud800"]): 1} if dice.random() < chance / 3 else {}),
        }
    if isinstance(value, list):
        found = [mutated(dice, item, chance) for item in value]
        return found * (2 if dice.random() < chance / 2 else 1)
    return value


def body(dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body and its headers."""
    data = json.dumps(mutated(dice, dice.choice(DOCUMENTS))).encode()
    headers: dict[str, str] = {}
    if dice.random() < 0.3:
        length = dice.choice([str(len(data)), str(len(data) + 1), "0", "-1", "x", "9" * 25, ""])
        headers["Inference-Header-Content-Length"] = length
        data += dice.randbytes(dice.choice([0, 4, 8, 16]))
    if dice.random() < 0.3:
        place = dice.randrange(len(data) + 1)
        data = dice.choice([data[:place], data[:place] + dice.randbytes(3) + data[place:], b"[" * place, b""])
    if dice.random() < 0.3:
        encoding = dice.choice(["gzip", "deflate", "br", "gzip, gzip", "identity"])
        headers["Content-Encoding"] = encoding
        if dice.random() < 0.7:
            data = PACK.get(encoding, bytes)(data)
    if dice.random() < 0.3:
        headers["Accept-Encoding"] = dice.choice(["gzip", "deflate;q=0.5, gzip;q=x", "*;q=", ";;,", "identity;q=0"])
    return data, headers


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    verb: str
    path: str
    body: bytes
    headers: Mapping[str, str]

    def to(self, path: str) -> "Request":
        """The same to another path."""
        return replace(self, path=path)


def requests(dice: random.Random, routes: Sequence[tuple[str, str]], count: int) -> Iterator[Request]:
    """Requests to `routes` (verb and template), in turn; the model `m` is meant to be there."""
    for number in range(count):
        verb, path = routes[number % len(routes)]
        if dice.random() < 0.05:
            verb = dice.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
        for name in ("model", "version", "repository", "region", "file"):
            path = path.replace(f"{{{name}}}", "m" if dice.random() < 0.7 else dice.choice(NAMES))
        data, headers = body(dice)
        yield Request(verb, path, data if verb != "GET" else b"", headers)
