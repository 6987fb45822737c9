"""What the registry refuses, each time with the field."""

import math
from dataclasses import replace

import pytest

from tidemill.errors import Invalid
from tidemill.registry import checks
from tidemill.registry.models import Draft, Edit, Lineage, Signature, TensorSpec
from tidemill.registry.records import encode_limited
from tidemill.tensors.dtypes import DataType

DIGEST = "ab" * 32
SPEC = TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 28))
FINE = Draft(
    format="onnx",
    artifact=DIGEST,
    signature=Signature(inputs=(SPEC,), outputs=(SPEC,), labels=("a", "a")),
    lineage=Lineage(job="jobs/j", dataset_digests=(DIGEST,), code_revision="v1.0 ünï", traceparent=""),
    metrics={"a": 0.0, "b": -1e308},
    tags={"a": "x" * 1024},
    description="d" * 8192,
)


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), labels: tuple[str, ...] = ()) -> Draft:
    return replace(FINE, signature=Signature(inputs=inputs, outputs=outputs, labels=labels))


def lineage(**fields: object) -> Draft:
    return replace(FINE, lineage=Lineage(**fields))  # type: ignore[arg-type]


def test_what_is_fine_is_fine() -> None:
    checks.check_draft(FINE)
    checks.check_draft(Draft(format="onnx", artifact=DIGEST))
    checks.check_draft(signature(replace(SPEC, shape=())))
    checks.check_draft(signature(replace(SPEC, shape=(0, 2**31))))


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (replace(FINE, format=""), "format"),
        (replace(FINE, format="../onnx"), "format"),
        (replace(FINE, artifact=""), "artifact"),
        (replace(FINE, artifact="sha256:" + DIGEST), "artifact"),
        (replace(FINE, artifact=DIGEST.upper()), "artifact"),
        (replace(FINE, artifact=DIGEST + "\n"), "artifact"),
        (replace(FINE, artifact="/etc/passwd"), "artifact"),
        (replace(FINE, artifact="file:///etc/passwd"), "artifact"),
        (replace(FINE, metrics={"a": math.nan}), "metrics.a"),
        (replace(FINE, metrics={"a": math.inf}), "metrics.a"),
        (replace(FINE, metrics={"a b": 1.0}), "metrics"),
        (replace(FINE, metrics={f"m{number}": 1.0 for number in range(257)}), "metrics"),
        (replace(FINE, tags={"": "x"}), "tags"),
        (replace(FINE, tags={"a": "x" * 1025}), "tags.a"),
        (replace(FINE, tags={f"t{number}": "" for number in range(65)}), "tags"),
        (replace(FINE, description="d" * 8193), "description"),
        (signature(*[replace(SPEC, name=str(number)) for number in range(65)]), "signature.inputs"),
        (signature(outputs=tuple([SPEC] * 65)), "signature.outputs"),
        (signature(SPEC, SPEC), "signature.inputs[1].name"),
        (signature(replace(SPEC, name="")), "signature.inputs[0].name"),
        (signature(replace(SPEC, name="x" * 257)), "signature.inputs[0].name"),
        (signature(replace(SPEC, shape=(1,) * 9)), "signature.inputs[0].shape"),
        (signature(replace(SPEC, shape=(-2,))), "signature.inputs[0].shape"),
        (signature(replace(SPEC, shape=(2**31 + 1,))), "signature.inputs[0].shape"),
        (signature(replace(SPEC, shape=(2**62,))), "signature.inputs[0].shape"),
        (signature(labels=("x",) * 10_001), "signature.labels"),
        (signature(labels=("x", "")), "signature.labels[1]"),
        (signature(labels=("x" * 257,)), "signature.labels[0]"),
        (lineage(job="j"), "lineage.job"),
        (lineage(job="jobs/../j"), "lineage.job"),
        (lineage(dataset_digests=(DIGEST, "x")), "lineage.dataset_digests[1]"),
        (lineage(dataset_digests=(DIGEST,) * 65), "lineage.dataset_digests"),
        (lineage(code_revision="x" * 257), "lineage.code_revision"),
        (lineage(code_revision="a\nb"), "lineage.code_revision"),
        (lineage(traceparent="00-0-0-0"), "lineage.traceparent"),
    ],
)
def test_what_is_wrong_is_named(draft: Draft, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        checks.check_draft(draft)
    assert list(refused.value.violations) == [f"model_version.{field}"]


def test_a_record_has_a_size() -> None:
    tags = {f"t{number}": "é" * 1024 for number in range(64)}
    checks.check_edit(Edit(tags=tags), "model")
    encode_limited({"tags": tags}, "model")
    with pytest.raises(Invalid) as refused:
        encode_limited({"tags": dict.fromkeys(tags, "\1" * 1024)}, "model")
    assert refused.value.reason == "TOO_LARGE"


@pytest.mark.parametrize("number", ["1", "42", "9" * 18])
def test_version_numbers(number: str) -> None:
    assert checks.check_number(number) == int(number)
