"""Names that users choose are checked the same way everywhere."""

import pytest

from tidemill import names
from tidemill.errors import Invalid

BAD = [
    "a%2e",
    "",
    "..",
    "a..b",
    "../etc",
    "a/b",
    "/a",
    "a\0b",
    "a" * 129,
    "a" * 300,
    "a ",
    " a",
    "a\n",
    "-a",
    ".a",
    "é",
    "a%2e",
    "a．b",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_with_the_field_named(name: str) -> None:
    with pytest.raises(Invalid) as error:
        names.check(name, "model")
    assert list(error.value.violations) == ["model"]
    assert error.value.reason == "INVALID_NAME"


@pytest.mark.parametrize("name", ["a", "A1", "resnet-50_v1.2", "0", "a" * 128])
def test_good_names_pass(name: str) -> None:
    assert names.check(name) == name


def test_resource_names_split_and_join() -> None:
    assert names.join(("models", "digits"), ("versions", "3")) == "models/digits/versions/3"
    assert names.split("models/digits/versions/3", "models", "versions") == ("digits", "3")


@pytest.mark.parametrize(
    "name", ["models/a", "models/a/versions/", "models/../versions/1", "models/a/versions/1/x", "x/a/versions/1"]
)
def test_wrong_resource_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        names.split(name, "models", "versions")


def test_digests_and_paths() -> None:
    assert names.check_digest("0" * 64) == "0" * 64
    for bad in ("0" * 63, "G" * 64, "A" * 64, "0" * 65, "../" + "0" * 61):
        with pytest.raises(Invalid):
            names.check_digest(bad)
    assert names.check_path("a/b.onnx") == "a/b.onnx"
    for bad in ("/a", "a//b", "a/../b", "a/", "/".join("a" * 9)):
        with pytest.raises(Invalid):
            names.check_path(bad)
