"""Plug-ins are found by file name."""

import importlib
import sys
import types
from pathlib import Path

import pytest

from tidemill import plugins
from tidemill.errors import Invalid


class Animal:
    """What the plug-ins of this test are."""


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    folder = tmp_path / "zoo_animals"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("")
    (folder / "_draft.py").write_text("")
    (folder / "cat.py").write_text(f"from {__name__} import Animal\nclass Cat(Animal): pass\n")
    (folder / "dog.py").write_text("raise RuntimeError('imported unasked')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo_animals"]:
        monkeypatch.delitem(sys.modules, name)
    import zoo_animals  # type: ignore[import-not-found]

    assert isinstance(zoo_animals, types.ModuleType)
    return zoo_animals


def test_one_file_is_one_plugin_and_only_what_is_asked_for_is_imported(animals: types.ModuleType) -> None:
    assert plugins.names(animals) == ["cat", "dog"]
    assert plugins.load(animals, "cat", Animal).__name__ == "Cat"


def test_a_missing_package_is_named(animals: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "zoo_animals" / "eel.py").write_text("import packages_of_the_sea\n")
    importlib.invalidate_caches()
    with pytest.raises(Invalid, match="'eel' needs the package 'packages_of_the_sea', which is not installed"):
        plugins.load(animals, "eel", Animal)


def test_an_unknown_name_lists_those_there_are(animals: types.ModuleType) -> None:
    with pytest.raises(Invalid, match="known are cat, dog") as error:
        plugins.load(animals, "../etc", Animal)
    assert error.value.reason == "UNKNOWN_ZOO_ANIMAL"
