"""What the OpenAPI document says of the Open Inference Protocol."""

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill.gateway import openapi
from tidemill.gateway.schemas import PREFIX, Schema
from tidemill.gateway.streams import EVENTS

_TAG = "Open Inference Protocol"
_HEAD = openapi.header(
    "Inference-Header-Content-Length",
    "Length of the JSON in bytes, when tensors follow it as binary data; 0: the body is the data of the only input.",
)
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "integer", "number", "string", "null"]},
}
_DATA: Schema = {"type": "array", "description": "The elements in row-major order, flat or nested.", "items": {}}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 8}
_DATATYPE: Schema = {"type": "string", "examples": ["FP32", "INT64", "BOOL", "BYTES"]}
_NAMES: Schema = {"type": "array", "items": {"type": "string"}}
_NUMBER: Schema = {"type": "integer", "minimum": 0}

SCHEMAS: Mapping[str, Schema] = {
    "OipError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "OipServer": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
    },
    "OipModel": {
        "type": "object",
        "required": ["name", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": {"$ref": PREFIX + "OipSpec"}},
            "outputs": {"type": "array", "items": {"$ref": PREFIX + "OipSpec"}},
        },
    },
    "OipSpec": {
        "type": "object",
        "description": "A tensor without its values; -1 is a free dimension.",
        "required": ["name", "datatype", "shape"],
        "properties": {"name": {"type": "string"}, "datatype": _DATATYPE, "shape": _SHAPE},
    },
    "OipInferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "description": "Comes back in the response."},
            "parameters": {**_PARAMETERS, "description": "`binary_data_output`: all outputs as binary data."},
            "inputs": {"type": "array", "items": {"$ref": PREFIX + "OipInput"}},
            "outputs": {
                "type": "array",
                "description": "The outputs that are wanted; all without it.",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "parameters": {**_PARAMETERS, "description": "`binary_data`: this one as binary data."},
                    },
                },
            },
        },
    },
    "OipInput": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": _DATATYPE,
            "shape": _SHAPE,
            "parameters": {
                **_PARAMETERS,
                "description": "`binary_data_size`: bytes behind the JSON, in place of data.",
            },
            "data": _DATA,
        },
    },
    "OipInferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": {"$ref": PREFIX + "OipInput"}},
        },
    },
    "OipGenerateRequest": {
        "type": "object",
        "description": "What the model has as inputs, by name, as one value or a list; all else are parameters.",
        "properties": {"id": {"type": ["string", "null"]}, "parameters": {"type": ["object", "null"]}},
        "additionalProperties": True,
        "examples": [{"text_input": "Once upon a time", "parameters": {"temperature": 0.5}}],
    },
    "OipGenerateResponse": {
        "type": "object",
        "description": "Outputs by name, one element as a value, more as a list; and parameters of the response.",
        "required": ["model_name", "model_version"],
        "properties": {"model_name": {"type": "string"}, "model_version": {"type": "string"}},
        "additionalProperties": True,
    },
    "OipModelConfig": {
        "type": "object",
        "description": "A configuration with the names of `config.pbtxt`: enums by name, all numbers as numbers.",
        "required": ["name", "platform", "backend", "max_batch_size", "input", "output"],
        "properties": {
            "name": {"type": "string"},
            "platform": {"type": "string"},
            "backend": {"type": "string"},
            "max_batch_size": {"type": "integer"},
            "input": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            "output": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
        },
        "additionalProperties": True,
    },
    "OipDuration": {
        "type": "object",
        "description": "How often something happened, and how long it took in nanoseconds, all together.",
        "required": ["count", "ns"],
        "properties": {"count": _NUMBER, "ns": _NUMBER},
    },
    "OipStatistics": {
        "type": "object",
        "required": ["model_stats"],
        "properties": {"model_stats": {"type": "array", "items": {"$ref": PREFIX + "OipModelStatistics"}}},
    },
    "OipModelStatistics": {
        "type": "object",
        "required": ["name", "version", "inference_count", "execution_count", "inference_stats", "batch_stats"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "last_inference": {**_NUMBER, "description": "When the last request ended: milliseconds since the epoch."},
            "inference_count": _NUMBER,
            "execution_count": _NUMBER,
            "inference_stats": {"type": "object", "additionalProperties": {"$ref": PREFIX + "OipDuration"}},
            "batch_stats": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            "memory_usage": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            "response_stats": {"type": "object", "additionalProperties": True},
        },
    },
    "OipIndexRequest": {
        "type": "object",
        "properties": {"ready": {"type": ["boolean", "null"], "description": "Only versions that can be asked."}},
    },
    "OipIndex": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "version", "state", "reason"],
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "state": {"type": "string", "examples": ["READY", "UNAVAILABLE"]},
                "reason": {"type": "string"},
            },
        },
    },
    "OipRepositoryRequest": {
        "type": "object",
        "properties": {
            "parameters": {
                **_PARAMETERS,
                "description": "To load: `config`, a configuration as JSON text, and `file:…`, files as base64. To"
                " unload: `unload_dependents`, a boolean.",
            }
        },
    },
    "OipTraceSettings": {
        "type": "object",
        "description": "Trace settings by name: `trace_level`, `trace_rate`, `trace_count` and more.",
        "additionalProperties": {
            "oneOf": [{"type": ["string", "integer", "null"]}, {"type": "array", "items": {"type": "string"}}]
        },
    },
    "OipLogSettings": {
        "type": "object",
        "description": "Log settings by name: `log_info`, `log_verbose_level` and more.",
        "additionalProperties": {"type": ["boolean", "integer", "string", "null"]},
    },
    "OipSystemRegions": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "key", "offset", "byte_size"],
            "properties": {
                "name": {"type": "string"},
                "key": {"type": "string"},
                "offset": _NUMBER,
                "byte_size": _NUMBER,
            },
        },
    },
    "OipSystemRegion": {
        "type": "object",
        "required": ["key", "byte_size"],
        "properties": {"key": {"type": "string"}, "offset": _NUMBER, "byte_size": _NUMBER},
    },
    "OipCudaRegions": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "device_id", "byte_size"],
            "properties": {"name": {"type": "string"}, "device_id": _NUMBER, "byte_size": _NUMBER},
        },
    },
    "OipCudaRegion": {
        "type": "object",
        "required": ["raw_handle", "byte_size"],
        "properties": {
            "raw_handle": {
                "type": "object",
                "required": ["b64"],
                "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
            },
            "device_id": _NUMBER,
            "byte_size": _NUMBER,
        },
    },
}
"""Schemas by name."""

_JSON = "application/json"
_ERROR = openapi.answer("What went wrong.", {_JSON: {"$ref": PREFIX + "OipError"}})


def _get(identifier: str, text: str, schema: Schema, *, refused: str = "") -> dict[str, Any]:
    responses = {"200": openapi.answer(text, {_JSON: schema}), "default": _ERROR}
    if refused:
        responses["400"] = openapi.answer(refused, {_JSON: {"anyOf": [schema, {"$ref": PREFIX + "OipError"}]}})
    return {**openapi.described(_TAG, identifier, text), "responses": responses}


def _flag(*names: str) -> Schema:
    return {"type": "object", "required": list(names), "properties": {name: {"type": "boolean"} for name in names}}


SERVER = _get("OipServerMetadata", "Name, version and extensions of the server.", {"$ref": PREFIX + "OipServer"})
LIVE = _get("OipServerLive", "Whether the server is alive.", _flag("live", "ready"), refused="It is not.")
READY = _get("OipServerReady", "Whether the server can serve.", _flag("live", "ready"), refused="It cannot.")
MODELS = _get(
    "OipModels",
    "Names of the models that can be asked.",
    {"type": "object", "required": ["models"], "properties": {"models": _NAMES}},
)
MODEL = _get("OipModelMetadata", "Inputs, outputs and versions of a model.", {"$ref": PREFIX + "OipModel"})
MODEL_READY = _get("OipModelReady", "Whether a model can be asked.", _flag("ready"), refused="It cannot.")
CONFIG = _get("OipModelConfig", "The configuration that a model runs with.", {"$ref": PREFIX + "OipModelConfig"})
STATISTICS = _get("OipModelStatistics", "Counters of a model since it was loaded.", {"$ref": PREFIX + "OipStatistics"})
ALL_STATISTICS = _get(
    "OipAllStatistics", "Counters of all models since each was loaded.", {"$ref": PREFIX + "OipStatistics"}
)
INFER: Mapping[str, Any] = {
    **openapi.described(
        _TAG,
        "OipModelInfer",
        "Asks a model. Tensors travel as JSON, or as binary data behind the JSON, which is faster by far.",
    ),
    "parameters": [_HEAD],
    "requestBody": openapi.body(
        {
            _JSON: {"$ref": PREFIX + "OipInferRequest"},
            "application/octet-stream": {"type": "string", "format": "binary"},
        }
    ),
    "responses": {
        "200": openapi.answer(
            "The outputs.",
            {
                _JSON: {"$ref": PREFIX + "OipInferResponse"},
                "application/octet-stream": {"type": "string", "format": "binary"},
            },
        ),
        "default": _ERROR,
    },
}
INFER_STREAM: Mapping[str, Any] = {
    **openapi.described(
        _TAG,
        "OipModelInferStream",
        "Asks a model for any number of responses. Each is an event as soon as it is there, with all tensors as JSON;"
        " an event with `error` is the last.",
    ),
    "parameters": [_HEAD],
    "requestBody": INFER["requestBody"],
    "responses": {
        "200": openapi.answer("The responses.", {EVENTS: {"$ref": PREFIX + "OipInferResponse"}}),
        "500": openapi.answer(
            "The model failed before its first response.",
            {EVENTS: {"$ref": PREFIX + "OipError"}, _JSON: {"$ref": PREFIX + "OipError"}},
        ),
        "default": _ERROR,
    },
}
_GENERATE: Mapping[str, Any] = openapi.body({_JSON: {"$ref": PREFIX + "OipGenerateRequest"}})
GENERATE: Mapping[str, Any] = {
    **openapi.described(
        _TAG,
        "OipGenerate",
        "Asks a model with a flat object. It is an error when the model gives none or more than one response.",
    ),
    "requestBody": _GENERATE,
    "responses": {
        "200": openapi.answer("The response.", {_JSON: {"$ref": PREFIX + "OipGenerateResponse"}}),
        "default": _ERROR,
    },
}
GENERATE_STREAM: Mapping[str, Any] = {
    **openapi.described(
        _TAG,
        "OipGenerateStream",
        "Asks a model with a flat object, for any number of responses. Each is an event as soon as it is there; an"
        " event with `error` is the last.",
    ),
    "requestBody": _GENERATE,
    "responses": {
        "200": openapi.answer("The responses.", {EVENTS: {"$ref": PREFIX + "OipGenerateResponse"}}),
        "500": openapi.answer(
            "The model failed before its first response.",
            {EVENTS: {"$ref": PREFIX + "OipError"}, _JSON: {"$ref": PREFIX + "OipError"}},
        ),
        "default": _ERROR,
    },
}


def _control(identifier: str, text: str, *, answer: str = "", body: str = "") -> dict[str, Any]:
    """An operation that changes or lists something; `answer` and `body` name schemas."""
    content = {_JSON: {"$ref": PREFIX + answer}} if answer else None
    made = {
        **openapi.described(_TAG, identifier, text),
        "responses": {"200": openapi.answer("Done." if content is None else text, content), "default": _ERROR},
    }
    if body:
        made["requestBody"] = openapi.body({_JSON: {"$ref": PREFIX + body}}, required=False)
    return made


def _controls() -> Iterator[dict[str, Any]]:
    index = {"answer": "OipIndex", "body": "OipIndexRequest"}
    yield _control("OipRepositoryIndex", "The models of all repositories, and what their versions are doing.", **index)
    yield _control("OipRepositoryIndexIn", "The models of one repository, and what their versions are doing.", **index)
    for suffix, where in (("", ""), ("In", " of one repository")):
        text = f"Loads a model{where}, or loads it again. Answers when it can run, or has failed."
        yield _control(f"OipRepositoryModelLoad{suffix}", text, body="OipRepositoryRequest")
        text = f"Unloads a model{where}. Requests in work still finish."
        yield _control(f"OipRepositoryModelUnload{suffix}", text, body="OipRepositoryRequest")
    for suffix, whose in (("", "the server"), ("Of", "a model")):
        settings = "OipTraceSettings"
        yield _control(f"OipTraceSettings{suffix}", f"The trace settings of {whose}.", answer=settings)
        text = f"Changes trace settings of {whose}. What is null is cleared; the answer is all of them."
        yield _control(f"OipChangeTraceSettings{suffix}", text, answer=settings, body=settings)
    settings = "OipLogSettings"
    yield _control("OipLogSettings", "The log settings of the server.", answer=settings)
    text = "Changes log settings of the server. The answer is all of them."
    yield _control("OipChangeLogSettings", text, answer=settings, body=settings)
    for kind, memory in (("System", "system shared memory"), ("Cuda", "CUDA memory")):
        name = f"Oip{kind}SharedMemory"
        text = f"Registers a region of {memory}, so that requests can name it instead of carrying tensors."
        yield _control(f"{name}Register", text, body=f"Oip{kind}Region")
        for suffix, which in (("", "all regions"), ("Of", "one region")):
            yield _control(f"{name}Status{suffix}", f"Tells of {which} of {memory}.", answer=f"Oip{kind}Regions")
            yield _control(f"{name}Unregister{suffix}", f"Lets go of {which} of {memory}.")


CONTROL: Mapping[str, dict[str, Any]] = {operation["operationId"]: operation for operation in _controls()}
"""Operations by their identifier."""
