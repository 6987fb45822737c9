"""What every runtime promises; a new one needs a model in `tests.support.runtimesamples`, and nothing here."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support import runtimesamples
from tidemill import plugins
from tidemill.errors import Invalid
from tidemill.inference import runtimes
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.signatures import FREE, Signature, TensorSpec
from tidemill.inference.warmup import warm_up
from tidemill.tensors.dtypes import DataType

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


@pytest.fixture(params=plugins.names(runtimes))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kind(name: str) -> type[Runtime]:
    return plugins.load(runtimes, name, Runtime)


@pytest.fixture
def files(name: str, kind: type[Runtime]) -> dict[str, bytes]:
    sample = runtimesamples.sample(name)
    return {path: sample[path] for path in kind.select(list(sample))}


@pytest.fixture
def settings(name: str) -> Settings:
    return runtimesamples.settings(name)


@pytest.fixture
def runtime(kind: type[Runtime], files: dict[str, bytes], settings: Settings) -> Iterator[Runtime]:
    loaded = kind.load(files, settings)
    yield loaded
    loaded.close()


def test_tells_its_signature(runtime: Runtime) -> None:
    spec = (DataType.FP32, (FREE, 2))
    assert runtime.signature == Signature((TensorSpec("x", *spec),), (TensorSpec("y", *spec),))


def test_says_what_it_is_and_where_it_runs(runtime: Runtime) -> None:
    assert runtime.platform
    assert runtime.devices


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_runs_batches_of_any_size(runtime: Runtime, rows: int) -> None:
    (y,) = runtime.run({"x": X[:rows]}, ["y"])
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, 2 * X[:rows])


def test_warms_up(runtime: Runtime) -> None:
    warm_up(runtime)


def test_input_is_left_alone_and_may_be_read_only(runtime: Runtime) -> None:
    x = np.frombuffer(X.tobytes(), np.float32).reshape(3, 2)
    runtime.run({"x": x}, ["y"])
    np.testing.assert_array_equal(x, X)


def test_answers_stay_what_they_are_when_it_runs_again(runtime: Runtime) -> None:
    (first,) = runtime.run({"x": X}, ["y"])
    runtime.run({"x": -X}, ["y"])
    np.testing.assert_array_equal(first, 2 * X)


def test_runs_on_many_threads_at_a_time(runtime: Runtime) -> None:
    barrier = threading.Barrier(4)

    def work(number: int) -> bool:
        barrier.wait(10)
        x = np.full((2, 2), number, np.float32)
        return all(bool((runtime.run({"x": x}, ["y"])[0] == 2 * number).all()) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_two_loads_are_independent(
    kind: type[Runtime], files: dict[str, bytes], settings: Settings, runtime: Runtime
) -> None:
    other = kind.load(files, settings)
    other.close()
    np.testing.assert_array_equal(runtime.run({"x": X}, ["y"])[0], 2 * X)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut"])
def test_damaged_files_are_refused(
    kind: type[Runtime], files: dict[str, bytes], settings: Settings, damage: str
) -> None:
    damaged = {
        path: {"empty": b"", "garbage": b"\x80\x04K*." * 50, "cut": data[:-9]}[damage] for path, data in files.items()
    }
    with pytest.raises(Invalid):
        kind.load(damaged, settings)


@pytest.mark.parametrize("paths", [[], ["readme.md"]])
def test_artifacts_of_something_else_are_refused(kind: type[Runtime], paths: list[str]) -> None:
    with pytest.raises(Invalid):
        kind.select(paths)
