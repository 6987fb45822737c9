"""Manifests are the same bytes for the same content, and refuse what cannot be a tree of files."""

import hashlib
import json
from typing import Any

import pytest

from tests.support.artifacts import sha256
from tidemill import errors
from tidemill.artifacts import manifests
from tidemill.artifacts.manifests import File

A, B = sha256(b"a"), sha256(b"b")


def test_canonical_bytes_are_these() -> None:
    manifest = manifests.check("model", [File("b/x.bin", B, 2), File("a", A, 1)], {"z": "é", "k": ""})
    expected = (
        f'{{"files":[{{"media_type":"application/octet-stream","path":"a","sha256":"{A}","size":1}},'
        f'{{"media_type":"application/octet-stream","path":"b/x.bin","sha256":"{B}","size":2}}],'
        '"kind":"model","labels":{"k":"","z":"é"},"version":1}'
    ).encode()
    assert manifests.encode(manifest) == expected
    assert manifests.digest(expected) == hashlib.sha256(expected).hexdigest()


def test_order_of_files_and_labels_does_not_matter() -> None:
    one = manifests.check("model", [File("a", A, 1), File("b", B, 2)], {"x": "1", "y": "2"})
    two = manifests.check("model", [File("b", B, 2), File("a", A, 1)], {"y": "2", "x": "1"})
    assert manifests.encode(one) == manifests.encode(two)
    assert (one.size, one.blobs) == (3, sorted([A, B]))


def test_each_part_is_kept_and_changes_the_digest() -> None:
    contents: list[tuple[str, dict[str, str], File]] = [
        ("model", {}, File("a", A, 1)),
        ("dataset", {}, File("a", A, 1)),
        ("model", {"k": "v"}, File("a", A, 1)),
        ("model", {}, File("b", A, 1)),
        ("model", {}, File("a", B, 1)),
        ("model", {}, File("a", A, 1, "text/csv")),
    ]
    digests = set()
    for kind, labels, file in contents:
        data = manifests.encode(manifests.check(kind, [file], labels))
        digests.add(manifests.digest(data))
        found = manifests.decode(data, manifests.digest(data))
        assert (found.kind, found.labels, found.files) == (kind, labels, (file,))
    assert len(digests) == len(contents)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "a\x00",
        "a\n",
        "a b",
        "%2e%2e/a",
        "．．/a",
        "C:/x",
        "a" * 129,
        "/".join("abcdefghi"),
    ],
)
def test_paths_that_could_leave_a_folder_are_refused(path: str) -> None:
    with pytest.raises(errors.Invalid):
        manifests.check("model", [File(path, A, 1)], {})


@pytest.mark.parametrize(
    ("kind", "files", "labels"),
    [
        ("", [File("a", A, 1)], {}),
        ("../model", [File("a", A, 1)], {}),
        ("model", [], {}),
        ("model", [File(f"f{n}", A, 1) for n in range(1001)], {}),
        ("model", [File("a", A, 1), File("a", B, 1)], {}),
        ("model", [File("a", A, 1), File("a/b", B, 1)], {}),
        ("model", [File("a", A.upper(), 1)], {}),
        ("model", [File("a", A, 1, "no media type")], {}),
        ("model", [File("a", A, 1, "text/" + "x" * 128)], {}),
        ("model", [File("a", A, 1)], {"bad key": "v"}),
        ("model", [File("a", A, 1)], {"k": "v" * 1025}),
        ("model", [File("a", A, 1)], {f"k{n}": "" for n in range(65)}),
    ],
)
def test_content_that_breaks_a_rule_is_refused(kind: str, files: list[File], labels: dict[str, str]) -> None:
    with pytest.raises(errors.Invalid) as refused:
        manifests.check(kind, files, labels)
    assert all(field.startswith("artifact.") for field in refused.value.violations)


def test_the_largest_content_fits_into_a_small_object() -> None:
    files = [File(f"{n:04d}" + "/" + "/".join(["p" * 70] * 7), A, 2**40, "text/" + "x" * 123) for n in range(1000)]
    labels = {f"k{n}": "v" * 1024 for n in range(64)}
    assert len(manifests.encode(manifests.check("model", files, labels))) < 4 << 20


def test_damaged_bytes_are_data_loss() -> None:
    data = manifests.encode(manifests.check("model", [File("a", A, 1)], {}))
    with pytest.raises(errors.DataLoss):
        manifests.decode(data.replace(b"model", b"modem"), manifests.digest(data))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"version": 2, "kind": "model", "files": [], "labels": {}},
        {"version": 1, "kind": "model", "files": [{"path": "a"}], "labels": {}},
        {
            "version": 1,
            "kind": "model",
            "labels": {},
            "files": [{"path": "../a", "sha256": A, "size": 1, "media_type": "a/b"}],
        },
        {
            "version": 1,
            "kind": "model",
            "files": [{"path": 1, "sha256": A, "size": 1, "media_type": "a/b"}],
            "labels": {},
        },
        {"version": 1, "kind": 7, "files": [{"path": "a", "sha256": A, "size": 1, "media_type": "a/b"}], "labels": {}},
        {
            "version": 1,
            "kind": "model",
            "files": [{"path": "a", "sha256": A, "size": 1, "media_type": "a/b"}],
            "labels": 3,
        },
    ],
)
def test_bytes_that_hold_no_manifest_are_data_loss(content: Any) -> None:
    data = json.dumps(content).encode()
    with pytest.raises(errors.DataLoss):
        manifests.decode(data, manifests.digest(data))


def test_bytes_that_are_no_json_are_data_loss() -> None:
    for data in (b"", b"\xff", b"{"):
        with pytest.raises(errors.DataLoss):
            manifests.decode(data, manifests.digest(data))
