"""Built-in data sets, and how the format of files is guessed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from tidemill import plugins
from tidemill.errors import Invalid
from tidemill.training import datasets
from tidemill.training.datasets import builtin
from tidemill.training.datasets.base import Options, Reader
from tidemill.training.spec import Component, Dataset, JobSpec
from tidemill.training.worker.preparation import guess, read


@pytest.mark.parametrize("name", list(builtin.CATALOGUE))
def test_a_built_in_data_set_is_what_the_catalogue_says(name: str) -> None:
    dataset = builtin.Builtin.read({}, Options(builtin=name))
    known = builtin.describe(name)
    assert len(dataset.samples) == known.samples
    assert dataset.sample_shape == known.sample_shape
    assert len(dataset.labels) == known.classes
    assert dataset.samples.x.dtype == np.dtype(known.dtype)
    assert set(dataset.samples.y.tolist()) == set(range(known.classes))
    assert known.text.endswith(".")


@pytest.mark.parametrize("name", list(builtin.CATALOGUE))
def test_a_built_in_data_set_is_the_one_that_scikit_learn_loads(name: str) -> None:
    found = builtin.Builtin.read({}, Options(builtin=name))
    theirs = getattr(sklearn.datasets, f"load_{name}")()
    np.testing.assert_array_equal(found.samples.x.reshape(len(theirs.data), -1), theirs.data)
    np.testing.assert_array_equal(found.samples.y, theirs.target)
    assert list(found.labels) == [str(label) for label in theirs.target_names]


def test_an_unknown_data_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(Invalid, match="breast_cancer, digits, iris, wine") as caught:
        builtin.describe("imagenet")
    assert caught.value.reason == "UNKNOWN_DATASET"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["data.npz"], "npz"),
        (["README.md", "Table.CSV"], "csv"),
        (["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"], "idx"),
    ],
)
def test_the_format_is_guessed_by_names(names: list[str], wanted: str) -> None:
    assert guess({name: Path(name) for name in names}) == wanted


@pytest.mark.parametrize("names", [[], ["a.parquet"], ["a.csv", "b.csv"], ["train-images-idx3-ubyte"]])
def test_names_that_fit_no_format_are_refused(names: list[str]) -> None:
    with pytest.raises(Invalid, match="no known format"):
        guess({name: Path(name) for name in names})


@pytest.mark.parametrize("columns", [{"text_column": "t"}, {"label_column": "kind"}])
def test_columns_are_for_tables(tmp_path: Path, columns: dict[str, str]) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((4, 2), "f4"), y=np.array([0, 1, 0, 1]))
    source = Dataset(artifact="a" * 64, label_column="label")
    files = {path.name: path}
    assert len(read(JobSpec(model=Component(name="mlp"), dataset=source), files, 1 << 20).samples) == 4
    with pytest.raises(Invalid, match="npz have no columns"):
        read(JobSpec(model=Component(name="mlp"), dataset=replace(source, **columns)), files, 1 << 20)


def test_plug_ins_are_imported_without_torch_or_scikit_learn() -> None:
    """The control plane checks names and hyperparameters in a process that has no use for either."""
    script = """
import sys
from tidemill import config, plugins
from tidemill.training import datasets, models, strategies
from tidemill.training.datasets.base import Reader
from tidemill.training.models.base import Model
from tidemill.training.strategies.base import Strategy
for name in plugins.names(models):
    model = plugins.load(models, name, Model)
    config.describe(model.Config)
    model.check(config.from_mapping(model.Config, {}), (12,) if model.dtype == "int64" else (12, 12), "int64", 2)
for package, base in ((datasets, Reader), (strategies, Strategy)):
    for name in plugins.names(package):
        plugins.load(package, name, base)
heavy = {"torch", "sklearn", "onnx", "onnxruntime", "grpc", "google", "safetensors"}
found = sorted(heavy & {name.partition(".")[0] for name in sys.modules})
sys.exit(f"imported: {found}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_there_is_one_reader_a_format() -> None:
    assert plugins.names(datasets) == ["builtin", "csv", "idx", "npz"]
    assert len({plugins.load(datasets, name, Reader) for name in plugins.names(datasets)}) == 4
