"""Numbers from files and JSON become what a model takes, or are refused."""

import numpy as np
import pytest

from tidemill.errors import Invalid
from tidemill.tensors import dtypes


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        (np.array([0.1, np.nan, np.inf]), "FP32", "<f4"),
        (np.array([0.1]), "FP16", "<f2"),
        (np.array([1, 2]), "FP64", "<f8"),
        (np.array([1.0, -2.0]), "INT8", "|i1"),
        (np.array([0, 1]), "BOOL", "|b1"),
        (np.array([True]), "INT64", "<i8"),
        (np.zeros((0, 3)), "INT32", "<i4"),
        (np.array([0.5]), "BF16", "<f4"),
    ],
)
def test_what_fits(given: "np.ndarray", name: str, kind: str) -> None:
    fitted = dtypes.fit(given, name)
    assert (fitted.dtype.str, fitted.shape) == (kind, given.shape)
    np.testing.assert_allclose(fitted.astype("f8"), given.astype("f8"), rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (np.array([1.5]), "INT64"),
        (np.array([300]), "UINT8"),
        (np.array([-1]), "UINT32"),
        (np.array([np.nan]), "INT32"),
        (np.array([2]), "BOOL"),
        (np.array([1e300]), "FP32"),
        (np.array([70000]), "FP16"),
    ],
)
def test_what_does_not(given: "np.ndarray", name: str) -> None:
    with pytest.raises(Invalid, match=f"some values cannot be {name}"):
        dtypes.fit(given, name)


def test_what_is_left_as_it_is() -> None:
    texts, exact = np.array(["a"]), np.array([1.0], "f4")
    assert dtypes.fit(texts, "FP32") is texts
    assert dtypes.fit(exact, "FP32") is exact
    assert dtypes.fit(exact, "BYTES") is exact
    with pytest.raises(Invalid, match="FP7"):
        dtypes.fit(exact, "FP7")
