"""No message of ours has a field for a path, an address to fetch from or a command, but for those that say why."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.compat.inference import model_config_pb2, service_pb2
from tidemill.api.parameters.v1 import parameters_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.api.training.v1 import training_pb2

FILES = (
    *(registry_pb2, artifacts_pb2, training_pb2, parameters_pb2, tensors_pb2),
    *(service_pb2, model_config_pb2),
)
DANGEROUS = re.compile(
    r"(^|_)(path|paths|file|files|filename|filenames|filepath|dir|dirs|directory|folder|url|urls|uri|uris|link|href|host"
    r"|endpoint|address|location|root|mount|cmd|command|commands|shell|exec|executable|script|argv|args|env|environ"
    r"|program|binary|import|plugin|library|pickle|code|hook|webhook|callback|proxy|secret|password)(_|$)"
)
_TRITON = "Triton's message, read from the operator's own repository; "
ALLOWED = {
    "tidemill.api.artifacts.v1.Artifact.files": "a list of messages",
    "tidemill.api.artifacts.v1.File.path": "a key in the manifest of valid names; blobs are stored by digest",
    "tidemill.api.parameters.v1.AttachResponse.path": "told by a shard to its worker, which checks a nonce there",
    "tidemill.api.parameters.v1.SharedMemory.path": "likewise, of the memory in which a version lies",
    "tidemill.api.training.v1.MeetRequest.address": "where rank 0 waits for its peers: only they connect to it",
    "tidemill.api.training.v1.MeetResponse.address": "the same, told to them",
    "tidemill.api.training.v1.ShardSight.address": "where a shard is, told to people who ask why a job is stuck",
    "tidemill.api.registry.v1.Instance.address": "host:port of a service, for clients that ask; checked, never fetched",
    "tidemill.api.registry.v1.Lineage.code_revision": "words that are kept and shown",
    "tidemill.api.training.v1.JobSpec.code_revision": "words that are kept and shown",
    "inference.ModelConfig.default_model_filename": _TRITON + "one of the files of the model",
    "inference.ModelConfig.cc_model_filenames": _TRITON + "refused",
    "inference.ModelOperations.op_library_filename": _TRITON + "refused",
    "inference.ModelWarmup.Input.input_data_file": _TRITON + "one of the files in the model's `warmup`",
    "inference.ModelSequenceBatching.InitialState.data_file": _TRITON
    + "one of the files in the model's `initial_state`",
    "inference.ModelInstanceGroup.host_policy": _TRITON + "a name that nothing is made of",
    "inference.ModelOutput.label_filename": _TRITON + "one of the files of the model",
}


def fields(messages: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every field by its full name."""
    for message in messages:
        name = f"{prefix}.{message.name}"
        yield from ((f"{name}.{field.name}", field) for field in message.field)
        yield from fields(message.nested_type, name)


def schema(module: Any) -> dict[str, Any]:
    """The fields of a file."""
    proto = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(proto)
    return dict(fields(proto.message_type, proto.package))


ALL = {name: field for module in FILES for name, field in schema(module).items()}


def test_fields_that_could_lead_out_of_a_server_say_why_they_do_not() -> None:
    found = {name for name in ALL if DANGEROUS.search(name.rpartition(".")[2])}
    assert found - set(ALLOWED) == set()
    assert set(ALLOWED) - found == set(), "no such field any more"


@pytest.mark.parametrize(
    "name", ["path", "log_file", "source_uri", "callback_url", "worker_command", "model_dir", "env"]
)
def test_the_rule_finds_such_names(name: str) -> None:
    assert DANGEROUS.search(name)


@pytest.mark.parametrize(
    "name", ["name", "profile", "redirect", "direction", "environment_size", "recommended", "encode"]
)
def test_the_rule_leaves_others_alone(name: str) -> None:
    assert not DANGEROUS.search(name)


def test_no_message_carries_another_whose_type_it_names() -> None:
    """An `Any` in a request would be unpacked by a name that its sender chose."""
    assert not [name for name, field in ALL.items() if field.type_name == ".google.protobuf.Any"]
