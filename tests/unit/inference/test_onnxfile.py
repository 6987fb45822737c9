"""Files that would make a runtime open other files are found."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tests.support import onnxmodels
from tidemill.errors import Invalid
from tidemill.inference.runtimes import _onnxfile
from tidemill.inference.runtimes._onnxfile import gather


def check_self_contained(data: bytes) -> None:
    """Return when the model needs no other file."""
    assert gather("model.onnx", {"model.onnx": data}).files == {}


@pytest.mark.parametrize("where", onnxmodels.EXTERNAL)
def test_external_data_is_found_wherever_it_hides(where: str) -> None:
    with pytest.raises(Invalid, match="external data"):
        check_self_contained(onnxmodels.external(where))


@pytest.mark.parametrize("data", [onnxmodels.scale(3), onnxmodels.sums(), onnxmodels.identity(8)])
def test_whole_models_pass(data: bytes) -> None:
    check_self_contained(data)


def test_external_location_without_the_flag_is_refused_too() -> None:
    made = onnxmodels.model([], [], [])
    made.graph.initializer.add(name="w").external_data.add(key="location", value="w.bin")
    with pytest.raises(Invalid, match="external data"):
        check_self_contained(made.SerializeToString())


def test_precompiled_nodes_are_refused() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")
    made = onnxmodels.model([node], [onnxmodels.tensor("x")], [onnxmodels.tensor("y")])
    with pytest.raises(Invalid, match="precompiled"):
        check_self_contained(made.SerializeToString())


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x08\x0a", b"PK\x03\x04" + bytes(64), bytes(4) + b"ORTM" + bytes(64)]
)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid, match="not an ONNX model"):
        check_self_contained(data)


def test_cut_models_are_refused() -> None:
    data = onnxmodels.scale(3)
    for end in range(1, len(data), 7):
        with pytest.raises(Invalid):
            check_self_contained(data[: len(data) - end])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_clear_answer(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        check_self_contained(data)


def test_nesting_is_bounded() -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    with pytest.raises(Invalid, match="nested deeper"):
        check_self_contained(helper.make_model(graph).SerializeToString())


def test_number_of_fields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnxfile, "MAX_FIELDS", 1000)
    nodes = [helper.make_node("Identity", ["x"], ["y"]) for _ in range(300)]
    with pytest.raises(Invalid, match="more than 1000 fields"):
        check_self_contained(onnxmodels.model(nodes, [], []).SerializeToString())


def test_a_model_that_needs_no_other_file_is_left_as_it_is() -> None:
    data = onnxmodels.scale(3)
    assert gather("model.onnx", {"model.onnx": data, "w.bin": b"1234"}).data is data


def test_files_are_used_a_bounded_number_of_times() -> None:
    size = 4000
    weights = [onnxmodels.external_tensor(f"w{number}", "w.bin", dims=[size // 4]) for number in range(9)]
    data = onnxmodels.model([], [], [], weights).SerializeToString()
    with pytest.raises(Invalid, match="more than 4 times"):
        gather("model.onnx", {"model.onnx": data, "w.bin": bytes(size)})
    gather("model.onnx", {"model.onnx": data, "w.bin": bytes(size), "more.bin": bytes(2 * size)})
