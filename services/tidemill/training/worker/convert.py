"""What an exported model takes and gives, as the registry's message of it."""

from google.protobuf import json_format

from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.training.models.base import FLOAT, TOKENS
from tidemill.training.worker.names import INPUT, OUTPUT

_DTYPES = {FLOAT: tensors_pb2.DATA_TYPE_FP32, TOKENS: tensors_pb2.DATA_TYPE_INT64}


def to_signature(dtype: str, sample_shape: tuple[int, ...], labels: tuple[str, ...]) -> str:
    """The protobuf JSON of `tidemill.api.registry.v1.Signature`, on one line; batches may have any size.

    Args:
        dtype: a model's `dtype`.
        sample_shape: dimensions of one sample.
        labels: names of the classes.
    """
    spec = tensors_pb2.TensorSpec
    signature = registry_pb2.Signature(
        inputs=[spec(name=INPUT, dtype=_DTYPES[dtype], shape=[-1, *sample_shape])],
        outputs=[spec(name=OUTPUT, dtype=tensors_pb2.DATA_TYPE_FP32, shape=[-1, len(labels)])],
        labels=labels,
    )
    return json_format.MessageToJson(signature, indent=None)
