"""What the OpenAPI document says of the Open Inference Protocol."""

from collections.abc import Mapping
from typing import Any

from tidemill.gateway import openapi
from tidemill.gateway.schemas import PREFIX, Schema

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
}
"""Schemas by name."""

_JSON = "application/json"
_ERROR = openapi.answer("What went wrong.", {_JSON: {"$ref": PREFIX + "OipError"}})


def _get(identifier: str, text: str, schema: Schema, *, refused: str = "") -> dict[str, Any]:
    responses = {"200": openapi.answer(text, {_JSON: schema}), "default": _ERROR}
    if refused:
        responses["400"] = openapi.answer(refused, {_JSON: schema})
    return {**openapi.described(_TAG, identifier, text), "responses": responses}


def _flag(name: str) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: {"type": "boolean"}}}


SERVER = _get("OipServerMetadata", "Name, version and extensions of the server.", {"$ref": PREFIX + "OipServer"})
LIVE = _get("OipServerLive", "Whether the server is alive.", _flag("live"), refused="It is not.")
READY = _get("OipServerReady", "Whether the server can serve.", _flag("ready"), refused="It cannot.")
MODEL = _get("OipModelMetadata", "Inputs, outputs and versions of a model.", {"$ref": PREFIX + "OipModel"})
MODEL_READY = _get("OipModelReady", "Whether a model can be asked.", _flag("ready"), refused="It cannot.")
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
