"""What shall be served, in memory and on disk."""

from pathlib import Path

import pytest

from tidemill.errors import DataLoss
from tidemill.inference.desired import Desired, SavedDesired, Version
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.view import View
from tidemill.tensors.dtypes import DataType

SIGNATURE = Signature((TensorSpec("x", DataType.BF16, (-1, 2)),), (TensorSpec("y", DataType.BYTES, ()),))
ONE = Version(model="m", number=1, format="onnx", artifact="a" * 64, signature=SIGNATURE, traceparent="00-1-2-01")
TWO = Version(model="m", number=2, format="onnx", artifact="b" * 64, job="jobs/j")


def test_aliases_without_their_version_are_left_out_and_versions_without_an_alias() -> None:
    desired = Desired.of({"m": {"champion": 1, "lost": 9}, "empty": {}}, [ONE, TWO])
    assert desired.aliases == {"m": {"champion": 1}, "empty": {}}
    assert desired.versions == {("m", 1): ONE}


def test_is_the_same_after_a_restart(tmp_path: Path) -> None:
    desired = Desired.of({"m": {"champion": 1, "canary": 2}, "empty": {}}, [ONE, TWO])
    SavedDesired(tmp_path / "desired.json").write(desired)
    assert SavedDesired(tmp_path / "desired.json").read() == desired


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert SavedDesired(tmp_path / "desired.json").read() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"aliases": {}, "versions": [{}]}', '{"aliases": [], "versions": []}', "\xff"]
)
def test_damage_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "desired.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataLoss):
        SavedDesired(tmp_path / "desired.json").read()


def test_view_follows_models_and_aliases() -> None:
    view = View()
    view.set_model("m")
    view.set_alias("m", "champion", 1)
    view.set_alias("m", "champion", 2)
    view.set_alias("other", "a", 7)
    view.set_model("m")
    assert view.aliases == {"m": {"champion": 2}, "other": {"a": 7}}
    assert view.pointed == {("m", 2), ("other", 7)}
    view.drop_alias("m", "champion")
    view.drop_alias("m", "champion")
    view.drop_model("other")
    assert view.aliases == {"m": {}}
    assert view.take_dropped() == {"other"}
    assert view.take_dropped() == set()
