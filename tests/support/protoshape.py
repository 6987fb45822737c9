"""What a set of proto files means on the wire, as plain data; as a script, that of the modules named, in JSON."""

import importlib
import json
import sys
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

Shape = dict[str, Any]


def shape(files: Iterable[FileDescriptor]) -> Shape:
    """`{"syntax", "messages", "enums", "services"}` of the files; the last three by full name."""
    found: Shape = {"syntax": [], "messages": {}, "enums": {}, "services": {}}
    for file in files:
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        found["syntax"].append(proto.syntax)
        for message in proto.message_type:
            _message(found, proto.package, message)
        for enum in proto.enum_type:
            _enum(found, proto.package, enum)
        for service in proto.service:
            found["services"][f"{proto.package}.{service.name}"] = {
                method.name: {
                    "request": method.input_type,
                    "response": method.output_type,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.method
            }
    return found


def _message(found: Shape, scope: str, message: DescriptorProto) -> None:
    name = f"{scope}.{message.name}"
    found["messages"][name] = {
        field.name: {
            "number": field.number,
            "type": field.type,
            "type_name": field.type_name,
            "label": field.label,
            "oneof": message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
            "optional": field.proto3_optional,
            "options": field.options.SerializeToString(deterministic=True).hex(),
        }
        for field in message.field
    }
    for nested in message.nested_type:
        _message(found, name, nested)
    for enum in message.enum_type:
        _enum(found, name, enum)


def _enum(found: Shape, scope: str, enum: EnumDescriptorProto) -> None:
    found["enums"][f"{scope}.{enum.name}"] = {value.name: value.number for value in enum.value}


if __name__ == "__main__":
    modules = [importlib.import_module(name) for name in sys.argv[1:]]
    json.dump(shape(module.DESCRIPTOR for module in modules), sys.stdout)
