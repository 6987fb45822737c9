"""Snapshots of groups as files: what comes back is what was kept, or nothing at all."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients import snapshots
from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState
from tidemill.errors import DataLoss, FailedPrecondition

GROUP = pb.Group(workers=2, clip_norm=1.5)
GROUP.tensors.add(name="a", shape=[3, 5])
GROUP.tensors.add(name="b", shape=[])
GROUP.optimizer.name = "adam"
GROUP.optimizer.parameters.update({"learning_rate": 0.01, "amsgrad": False})
GROUP.consistency.mode = pb.Consistency.MODE_BSP
GROUP.version = 99  # how far it is belongs to its state
DEFINITION = snapshots.definition_of(GROUP)
FACTS = {"step": 7, "loss": 0.5}


def state() -> GroupState:
    values = np.random.Generator(np.random.PCG64(1)).standard_normal((3, 16), np.float32)
    held = {"exp_avg": {0: values[1]}, "exp_avg_sq": {0: values[2]}, "step": {0: np.array([7], np.float32)}}
    return GroupState(version=8, steps=7, clocks=(8, 8), samples=140, flat=values[0], state=held)


def plain(found: GroupState) -> Any:
    held = {name: {block: array.tolist() for block, array in parts.items()} for name, parts in found.state.items()}
    return found.version, found.steps, found.clocks, found.samples, found.flat.tolist(), held


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return snapshots.write(tmp_path, state(), DEFINITION, FACTS)


def test_all_of_it_comes_back(files: dict[str, Path]) -> None:
    found = snapshots.read(files, DEFINITION)
    assert plain(found.state) == plain(state())
    assert found.state.flat.dtype == np.float32
    assert found.facts == FACTS


def test_an_optimizer_without_state(tmp_path: Path) -> None:
    files = snapshots.write(tmp_path, replace(state(), state={}), DEFINITION, {})
    assert snapshots.read(files, DEFINITION).state.state == {}


@pytest.mark.parametrize("name", [snapshots.WEIGHTS, snapshots.OPTIMIZER, snapshots.MANIFEST])
def test_any_byte_that_has_changed_is_noticed(files: Mapping[str, Path], name: str) -> None:
    whole = files[name].read_bytes()
    for position in {0, 9, len(whole) // 2, len(whole) - 2}:
        files[name].write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DataLoss) as refused:
            snapshots.read(files, DEFINITION)
        assert refused.value.reason == "BAD_SNAPSHOT"
        assert "manifest" in refused.value.message
    files[name].write_bytes(whole[:-5])
    with pytest.raises(DataLoss):
        snapshots.read(files, DEFINITION)
    with pytest.raises(DataLoss):
        snapshots.read({other: path for other, path in files.items() if other != name}, DEFINITION)


def changed(**fields: Any) -> Definition:
    group = pb.Group()
    group.CopyFrom(GROUP)
    group.MergeFrom(pb.Group(**fields))
    return snapshots.definition_of(group)


def test_a_snapshot_of_something_else_is_refused(files: Mapping[str, Path]) -> None:
    other = pb.Optimizer(name="adam")
    other.parameters.update({"learning_rate": 0.02})
    for wanted, said in (
        (replace(DEFINITION, tensors=(("a", (5, 3)), ("b", ()))), "of another model"),
        (replace(DEFINITION, tensors=DEFINITION.tensors[::-1]), "of another model"),
        (changed(optimizer=pb.Optimizer(name="sgd")), "of another optimizer"),
        (changed(optimizer=other), "of another optimizer"),
        (changed(l1=0.1), "of another l1: null, not 0.1"),
        (changed(consistency=pb.Consistency(mode=pb.Consistency.MODE_ASP)), "of another consistency"),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            snapshots.read(files, wanted)
        assert refused.value.reason == "WRONG_SNAPSHOT"
        assert said in refused.value.message


def test_other_workers_go_on_where_those_before_stood_still(tmp_path: Path) -> None:
    rounds = snapshots.write(tmp_path, state(), DEFINITION, {})
    found = snapshots.read(rounds, replace(DEFINITION, workers=3)).state
    assert (found.version, found.steps, found.clocks) == (8, 7, (8, 8, 8))
    live = replace(DEFINITION, rule={**DEFINITION.rule, "consistency": {"mode": "MODE_ASP"}})
    alike = snapshots.write(tmp_path, replace(state(), version=16, clocks=(8, 8)), live, {})
    found = snapshots.read(alike, replace(live, workers=1)).state
    assert (found.version, found.clocks) == (8, (8,)), "without rounds every push makes a version"
    apart = snapshots.write(tmp_path, replace(state(), version=15, clocks=(8, 7)), live, {})
    assert snapshots.read(apart, live).state.clocks == (8, 7)
    with pytest.raises(FailedPrecondition) as refused:
        snapshots.read(apart, replace(live, workers=3))
    assert refused.value.reason == "WRONG_SNAPSHOT"
    assert "at different steps" in refused.value.message


def test_how_far_a_group_is_and_where_it_lies_do_not_matter() -> None:
    assert changed(version=5, shard=1, shards=4) == DEFINITION


def test_a_later_format_is_refused(files: Mapping[str, Path]) -> None:
    manifest = json.loads(files[snapshots.MANIFEST].read_text())
    del manifest["sha256"]
    manifest["format"] = 2
    files[snapshots.MANIFEST].write_text(json.dumps({**manifest, "sha256": snapshots._seal(manifest)}))
    with pytest.raises(DataLoss) as refused:
        snapshots.read(files, DEFINITION)
    assert "of format 2" in refused.value.message
