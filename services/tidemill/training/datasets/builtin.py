"""The data sets that scikit-learn carries: they need no network and no upload."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tidemill.errors import FailedPrecondition, invalid
from tidemill.training.datasets.base import Options, Reader
from tidemill.training.samples import Dataset, assemble


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is known of a built-in data set without loading it."""

    text: str
    """One sentence."""
    samples: int
    sample_shape: tuple[int, ...]
    classes: int
    dtype: str = "float64"


CATALOGUE: Mapping[str, Description] = MappingProxyType(
    {
        "breast_cancer": Description(
            text="Breast tumours by 30 measures of their cell nuclei: malignant or benign (Wolberg et al. 1995).",
            samples=569,
            sample_shape=(30,),
            classes=2,
        ),
        "digits": Description(
            text="Handwritten digits as grey images of 8x8 pixels, values 0 to 16 (Alpaydin and Kaynak 1998).",
            samples=1797,
            sample_shape=(8, 8),
            classes=10,
        ),
        "iris": Description(
            text="Flowers of three species of iris by four lengths of their leaves (Fisher 1936).",
            samples=150,
            sample_shape=(4,),
            classes=3,
        ),
        "wine": Description(
            text="Italian wines of three growers by 13 chemical measures (Aeberhard and Forina 1991).",
            samples=178,
            sample_shape=(13,),
            classes=3,
        ),
    }
)


_FILES = {
    "breast_cancer": ("breast_cancer.csv", 1),
    "digits": ("digits.csv.gz", 0),
    "iris": ("iris.csv", 1),
    "wine": ("wine_data.csv", 1),
}
"""File of each, and its number of head lines; the class is the last column."""


def describe(name: str) -> Description:
    """What is known of the built-in data set `name`.

    Raises:
        Invalid: with reason UNKNOWN_DATASET; the message lists those there are.
    """
    if name not in CATALOGUE:
        raise invalid(
            "dataset.builtin", f"{name[:40]!r} is not one of {', '.join(CATALOGUE)}", reason="UNKNOWN_DATASET"
        )
    return CATALOGUE[name]


class Builtin(Reader):
    """A data set that scikit-learn carries, chosen by `Options.builtin`; it has no files."""

    @classmethod
    def accepts(cls, names: Sequence[str]) -> bool:
        """Never: nothing that is uploaded is built in."""
        return False

    @classmethod
    def read(cls, files: Mapping[str, Path], options: Options) -> Dataset:
        """The data set of that name; images keep their two dimensions."""
        known = describe(options.builtin)
        file, heads = _FILES[options.builtin]
        path = _folder() / file
        labels = [str(number) for number in range(known.classes)]
        if heads:  # number of samples, of their measures, and the names of the classes
            with path.open(encoding="utf-8") as lines:
                labels = lines.readline().strip().split(",")[2:]
        table = np.loadtxt(path, delimiter=",", skiprows=heads)
        x = table[:, :-1].reshape(-1, *known.sample_shape)
        return assemble(x, table[:, -1].astype(np.int64), labels=labels)


def _folder() -> Path:
    """Where scikit-learn keeps its data.

    Its files are read as they are: importing it takes longer than everything else that a worker does with them.

    Raises:
        FailedPrecondition: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise FailedPrecondition("built-in data sets are part of scikit-learn, which is not installed")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"
