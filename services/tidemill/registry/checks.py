"""What callers may send: every refusal names the field."""

import math
import re
from collections.abc import Mapping, Sequence

from tidemill import names
from tidemill.errors import invalid
from tidemill.registry.models import Draft, Edit, Instance, Lineage, Signature, TensorSpec
from tidemill.tensors.shapes import MAX_DIMENSION, MAX_DIMENSIONS

MAX_DESCRIPTION = 8192
MAX_PAIRS = 64
MAX_VALUE = 1024
MAX_METRICS = 256
MAX_TENSORS = 64
MAX_TENSOR_NAME = 256
MAX_LABELS = 10_000
MAX_LABEL = 256
MAX_DATASETS = 64
MAX_CODE_REVISION = 256
MAX_REQUEST_ID = 128
MAX_INSTANCE_LABELS = 2048
MIN_TTL, MAX_TTL = 2.0, 3600.0

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?):([0-9]{1,5})")


def check_edit(edit: Edit, field: str) -> None:
    """Check new values of a resource's mutable fields.

    Raises:
        Invalid: with `field` and the one in it that is wrong, as all functions here.
    """
    if edit.description is not None:
        check_text(edit.description, f"{field}.description", MAX_DESCRIPTION)
    if edit.tags is not None:
        check_pairs(edit.tags, f"{field}.tags")


def check_draft(draft: Draft, field: str = "model_version") -> None:
    """Check what the creator of a version says about it."""
    names.check(draft.format, f"{field}.format")
    names.check_digest(draft.artifact, f"{field}.artifact")
    if draft.signature is not None:
        check_signature(draft.signature, f"{field}.signature")
    if draft.lineage is not None:
        check_lineage(draft.lineage, f"{field}.lineage")
    check_metrics(draft.metrics, f"{field}.metrics")
    check_edit(Edit(description=draft.description, tags=draft.tags), field)


def check_text(text: str, field: str, most: int) -> None:
    """Check the length of a free text."""
    if len(text) > most:
        raise invalid(field, f"has {len(text)} characters, at most {most} are allowed", reason="TOO_LARGE")


def check_pairs(pairs: Mapping[str, str], field: str) -> None:
    """Check free key-value pairs."""
    if len(pairs) > MAX_PAIRS:
        raise invalid(field, f"has {len(pairs)} pairs, at most {MAX_PAIRS} are allowed", reason="TOO_LARGE")
    for key, value in pairs.items():
        names.check(key, field)
        check_text(value, f"{field}.{key}", MAX_VALUE)


def check_metrics(metrics: Mapping[str, float], field: str) -> None:
    """Check measured numbers."""
    if len(metrics) > MAX_METRICS:
        raise invalid(field, f"has {len(metrics)} numbers, at most {MAX_METRICS} are allowed", reason="TOO_LARGE")
    for key, value in metrics.items():
        names.check(key, field)
        if not math.isfinite(value):
            raise invalid(f"{field}.{key}", f"must be finite, not {value}")


def check_signature(signature: Signature, field: str) -> None:
    """Check tensors and labels."""
    check_tensors(signature.inputs, f"{field}.inputs")
    check_tensors(signature.outputs, f"{field}.outputs")
    if len(signature.labels) > MAX_LABELS:
        raise invalid(f"{field}.labels", f"at most {MAX_LABELS} are allowed", reason="TOO_LARGE")
    for index, label in enumerate(signature.labels):
        if not label:
            raise invalid(f"{field}.labels[{index}]", "must not be empty")
        check_text(label, f"{field}.labels[{index}]", MAX_LABEL)


def check_tensors(specs: Sequence[TensorSpec], field: str) -> None:
    """Check the tensors on one side of a model."""
    if len(specs) > MAX_TENSORS:
        raise invalid(field, f"has {len(specs)} tensors, at most {MAX_TENSORS} are allowed", reason="TOO_LARGE")
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        at = f"{field}[{index}]"
        if not spec.name:
            raise invalid(f"{at}.name", "must not be empty")
        check_text(spec.name, f"{at}.name", MAX_TENSOR_NAME)
        if spec.name in seen:
            raise invalid(f"{at}.name", f"{spec.name!r} occurs twice")
        seen.add(spec.name)
        if len(spec.shape) > MAX_DIMENSIONS:
            raise invalid(f"{at}.shape", f"at most {MAX_DIMENSIONS} dimensions are allowed", reason="INVALID_SHAPE")
        for dimension in spec.shape:
            if not -1 <= dimension <= MAX_DIMENSION:
                raise invalid(f"{at}.shape", f"dimension {dimension} is not in [-1, 2^31]", reason="INVALID_SHAPE")


def check_lineage(lineage: Lineage, field: str) -> None:
    """Check where a version is said to come from."""
    if lineage.job:
        names.split(lineage.job, "jobs", field=f"{field}.job")
    if len(lineage.dataset_digests) > MAX_DATASETS:
        raise invalid(f"{field}.dataset_digests", f"at most {MAX_DATASETS} are allowed", reason="TOO_LARGE")
    for index, digest in enumerate(lineage.dataset_digests):
        names.check_digest(digest, f"{field}.dataset_digests[{index}]")
    check_text(lineage.code_revision, f"{field}.code_revision", MAX_CODE_REVISION)
    if not lineage.code_revision.isprintable():
        raise invalid(f"{field}.code_revision", "must be printable")
    if lineage.traceparent and not _TRACEPARENT.fullmatch(lineage.traceparent):
        raise invalid(f"{field}.traceparent", "must be a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>")


def check_alias(alias: str, field: str = "name") -> str:
    """`alias` itself when it can be one: a valid name that cannot be taken for a version number."""
    names.check(alias, field)
    if alias.isdecimal():
        raise invalid(field, f"alias {alias!r} must not be a number", reason="INVALID_NAME")
    return alias


def check_number(text: str, field: str = "name") -> int:
    """The version number that `text` is."""
    if not _NUMBER.fullmatch(text):
        raise invalid(field, f"{text[:40]!r} is not a version number", reason="INVALID_NAME")
    return int(text)


def check_request_id(request_id: str) -> None:
    """Check the length of a request's id."""
    check_text(request_id, "request_id", MAX_REQUEST_ID)


def check_service(service: str, field: str) -> str:
    """`service` itself when it is a valid name without dots, so that `{service}.{id}` means one thing only."""
    names.check(service, field)
    if "." in service:
        raise invalid(field, f"service {service!r} must not contain a dot", reason="INVALID_NAME")
    return service


def check_instance(instance: Instance) -> None:
    """Check an instance that is to be registered."""
    check_service(instance.service, "instance.service")
    names.check(instance.instance_id, "instance_id")
    names.check(instance.identifier, "instance_id")
    match = _HOST_PORT.fullmatch(instance.address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise invalid("instance.address", "must be host:port")
    check_pairs(instance.labels, "instance.labels")
    if sum(len(key) + len(value) for key, value in instance.labels.items()) > MAX_INSTANCE_LABELS:
        raise invalid(
            "instance.labels", f"at most {MAX_INSTANCE_LABELS} characters together are allowed", reason="TOO_LARGE"
        )
    if not MIN_TTL <= instance.ttl <= MAX_TTL:  # written so that NaN fails too
        raise invalid("instance.ttl", f"must be between {MIN_TTL:.0f} s and {MAX_TTL:.0f} s")
