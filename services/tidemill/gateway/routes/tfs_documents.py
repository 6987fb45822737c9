"""What the OpenAPI document says of TensorFlow Serving's REST API."""

from collections.abc import Mapping
from typing import Any

from tidemill.gateway import openapi
from tidemill.gateway.schemas import PREFIX, Schema

_TAG = "TensorFlow Serving"
_JSON = "application/json"

SCHEMAS: Mapping[str, Schema] = {
    "TfsError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "TfsPredictRequest": {
        "type": "object",
        "description": "Either `instances` or `inputs`. Bytes are objects with the one key `b64`.",
        "properties": {
            "signature_name": {"type": "string", "description": "`serving_default`, or nothing."},
            "instances": {
                "type": "array",
                "description": "Rows: for each the value of the only input, or an object with the value of each input.",
                "items": {},
            },
            "inputs": {"description": "Columns: the only input with all its rows, or an object with all inputs."},
        },
    },
    "TfsPredictResponse": {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "description": "Rows, for `instances`.", "items": {}},
            "outputs": {"description": "Columns, for `inputs`."},
        },
    },
    "TfsModelStatus": {
        "type": "object",
        "required": ["model_version_status"],
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["version", "state", "status"],
                    "properties": {
                        "version": {"type": "string"},
                        "state": {"type": "string", "enum": ["LOADING", "AVAILABLE", "UNLOADING", "END"]},
                        "status": {
                            "type": "object",
                            "properties": {"error_code": {"type": "string"}, "error_message": {"type": "string"}},
                        },
                    },
                },
            }
        },
    },
}
"""Schemas by name."""

_ERROR = openapi.answer("What went wrong.", {_JSON: {"$ref": PREFIX + "TfsError"}})

PREDICT: Mapping[str, Any] = {
    **openapi.described(_TAG, "TfsPredict", "Asks a model."),
    "requestBody": openapi.body({_JSON: {"$ref": PREFIX + "TfsPredictRequest"}}),
    "responses": {
        "200": openapi.answer("The outputs.", {_JSON: {"$ref": PREFIX + "TfsPredictResponse"}}),
        "default": _ERROR,
    },
}
STATUS: Mapping[str, Any] = {
    **openapi.described(_TAG, "TfsModelStatus", "What the versions of a model are doing."),
    "responses": {
        "200": openapi.answer("The versions.", {_JSON: {"$ref": PREFIX + "TfsModelStatus"}}),
        "default": _ERROR,
    },
}
MODELS: Mapping[str, Any] = {
    **openapi.described(_TAG, "TfsModels", "Models are not listed by this protocol: this is always an error."),
    "responses": {"400": _ERROR, "default": _ERROR},
}
