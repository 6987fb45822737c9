"""Requests that are small on the wire and want to be large in memory."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.hostilenames import MODULES
from tidemill.api.compat.inference import service_pb2 as pb

MIB = 1 << 20
MANY = 1_000_000
_LENGTH_DELIMITED = 2


def floods() -> Iterator[tuple[Any, str, bytes]]:
    """Methods of all services with a million empty parts in one of their requests' fields: method, field, message."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for path in _parts(method.input_type, 4):
                    yield method, ".".join(field.name for field in path), _flood([field.number for field in path])


def _parts(kind: Any, depth: int) -> Iterator[list[Any]]:
    """Ways to fields that can be there many times, messages above them included."""
    for field in kind.fields:
        if field.message_type is not None and depth > 1 and field.message_type.name not in ("Value", "FieldMask"):
            yield from ([field, *rest] for rest in _parts(field.message_type, depth - 1))
        if field.is_repeated and field.cpp_type in (field.CPPTYPE_STRING, field.CPPTYPE_MESSAGE):
            yield [field]


def _flood(numbers: list[int]) -> bytes:
    *above, last = numbers
    data = (_varint(last << 3 | _LENGTH_DELIMITED) + b"\0") * MANY
    for number in reversed(above):
        data = _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data
    return data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def infer(*shape: int, raw: bytes = b"\0\0\0\0", datatype: str = "FP32", model: str = "m") -> Any:
    """A request to infer with one input `x`."""
    request: Any = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def lies() -> Mapping[str, Any]:
    """Requests to the model `m`, FP32 [n, 2], and `text`, BYTES [n, 2], that say what is not so."""
    typed: Any = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=(2**28, 2)).contents.fp32_contents.append(1)
    long: Any = infer(1, 2, raw=bytes(8))
    long.outputs.add(name="y" * MIB)
    lengths = {
        f"a text of {size} bytes": infer(1, 2, raw=int(size).to_bytes(4, "little") * 2, datatype="BYTES", model="text")
        for size in (5, 2**20, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
    }
    return {
        "a gigabyte": infer(2**27, 2),
        "an exabyte": infer(2**58, 2),
        "a product of 2**64": infer(2**32, 2**31),
        "a product of 2**64 + 4": infer(2**62 + 1, 4),
        "negative twice": infer(-(2**31), -(2**31)),
        "many dimensions": infer(*(1,) * 100_000),
        "texts without end": infer(2**30, 2, raw=bytes(8), datatype="BYTES", model="text"),
        "numbers that are typed": typed,
        "a long name of an output": long,
        **lengths,
    }


def _json(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def _with(text: str) -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":' + text.encode() + b"}]}"


def _zeros_of_gzip(mebibytes: int) -> bytes:
    """gzip of so many MiB of zeros, in members of 64 MiB."""
    return gzip.compress(bytes(64 * MIB)) * (mebibytes // 64)


def bodies() -> Mapping[str, tuple[Mapping[str, str], bytes]]:
    """Headers and bodies of REST requests to infer."""
    good = _json()
    gzipped, deflated = {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}
    binary = {"Inference-Header-Content-Length": "", "Content-Type": "application/octet-stream"}
    tensor = {"name": "x", "datatype": "FP32", "shape": [2**27, 2], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [tensor]}).encode()
    large = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 2**30}}]}).encode()
    plain: dict[str, bytes] = {
        "a gigabyte": _json(shape=[2**27, 2]),
        "a product of 2**64": _json(shape=[2**32, 2**32]),
        "a dimension of a million digits": _with("[1,2]").replace(b"[1,2]", b"[" + b"9" * MANY + b"]", 1),
        "a number of a million digits": _with("[1," + "9" * MANY + "]"),
        "a huge exponent": _with("[1,1e999999999]"),
        "lists in lists": _with("[" * 100_000),
        "lists in lists that end": _with("[" * 100_000 + "]" * 100_000),
        "objects in objects": _with('{"a":' * 100_000),
        "half a million names": b"{" + b",".join(b'"%d":1' % number for number in range(MANY // 2)) + b"}",
        "a million inputs": b'{"inputs":[' + b"{}," * MANY + b"{}]}",
        "many parameters": b'{"parameters":{' + b",".join(b'"%d":1' % n for n in range(400_000)) + b"}}",
        "two million lists": _with("[" + "[]," * (2 * MANY) + "[]]"),
    }
    return {
        **{name: ({}, body) for name, body in plain.items()},
        "a bomb": (gzipped, _zeros_of_gzip(1024)),
        "a bomb in a bomb": (gzipped, gzip.compress(_zeros_of_gzip(1024))),
        "a bomb of spaces": (gzipped, gzip.compress(b" " * (60 * MIB)) * 20),
        "a bomb of deflate": (deflated, zlib.compress(bytes(256 * MIB), 1)),
        "an encoding many times": ({"Content-Encoding": ", ".join(["gzip"] * 500)}, gzip.compress(good)),
        "a large tensor in few bytes": ({**binary, "Inference-Header-Content-Length": str(len(head))}, head + bytes(4)),
        "a tensor that is not there": ({**binary, "Inference-Header-Content-Length": str(len(large))}, large),
        "a head that is not there": ({**binary, "Inference-Header-Content-Length": str(2**40)}, good),
    }
