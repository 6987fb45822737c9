"""Update masks: which fields of a resource a call changes."""

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tidemill.errors import invalid


def fields(mask: FieldMask, resource: Message, mutable: Collection[str]) -> set[str]:
    """The fields to change: those of `mask`; `*` = all of `mutable`; an empty mask = those of `mutable` that are set.

    Raises:
        Invalid: the mask names a field that cannot be changed.
    """
    if not mask.paths:
        present = {descriptor.name for descriptor, _ in resource.ListFields()}
        return present & set(mutable)
    if list(mask.paths) == ["*"]:
        return set(mutable)
    for path in mask.paths:
        if path not in mutable:
            known = ", ".join(sorted(mutable))
            raise invalid("update_mask", f"{path[:64]!r} cannot be changed; only {known} can", reason="IMMUTABLE_FIELD")
    return set(mask.paths)
