"""Snapshots of parameter groups as artifacts: safetensors for the values, and a manifest that says what they are.

`weights.safetensors` holds the tensors by name, `optimizer.safetensors` the optimizer's state as `NAME/BLOCK`. In
`manifest.json` stand the size and SHA-256 of both, what the group is made of, how far it was, and a SHA-256 of all
that. Blocks are cut independently of the number of shards, so a snapshot fits any number of them. Needs `safetensors`.
"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState
from tidemill.errors import DataLoss, FailedPrecondition
from tidemill.tensors import blocks

KIND = "checkpoint"
"""Kind of the artifacts."""
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1
_MOST = 64 << 20
"""Largest manifest in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read back."""

    state: GroupState
    facts: Mapping[str, Any]
    """What was kept with it."""


def definition_of(group: pb.Group) -> Definition:
    """The definition of a group, as any of its shards tells it: with every hyperparameter."""
    told = pb.Group(clip_norm=group.clip_norm, l1=group.l1)
    for field in ("optimizer", "schedule", "consistency"):
        if group.HasField(field):
            getattr(told, field).CopyFrom(getattr(group, field))
    return Definition(
        tensors=tuple((tensor.name, tuple(tensor.shape)) for tensor in group.tensors),
        workers=group.workers,
        rule=json_format.MessageToDict(told, preserving_proto_field_name=True),
    )


async def save(
    artifacts: ArtifactsClient,
    state: GroupState,
    definition: Definition,
    *,
    facts: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    reference: str = "",
    scratch: Path | None = None,
) -> str:
    """Keep a snapshot as an artifact; its digest. Before that is known there is none, and earlier ones are left alone.

    Args:
        artifacts: where.
        state: of the group.
        definition: of the group.
        facts: what else is to be known of it, as JSON knows it.
        labels, reference: of the artifact.
        scratch: directory for files under way.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        files = await asyncio.to_thread(write, Path(folder), state, definition, facts or {})
        made = await artifacts.create_artifact(KIND, files, labels=labels, reference=reference)
        return str(made.digest)


async def load(
    artifacts: ArtifactsClient, digest: str, definition: Definition, *, scratch: Path | None = None
) -> Snapshot:
    """The snapshot in an artifact, verified.

    Raises:
        NotFound: there is no such artifact.
        DataLoss: reason BAD_SNAPSHOT, when it is damaged, or no snapshot.
        FailedPrecondition: reason WRONG_SNAPSHOT, when it is of another model, optimizer or rule; or of another number
            of workers, who were at different steps.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        files = await artifacts.download_artifact(digest, Path(folder))
        return await asyncio.to_thread(read, files, definition)


def write(folder: Path, state: GroupState, definition: Definition, facts: Mapping[str, Any]) -> dict[str, Path]:
    """Write a snapshot into `folder`; the files by name."""
    from safetensors.numpy import save_file  # not every user of the clients has it

    files = {name: folder / name for name in (WEIGHTS, OPTIMIZER, MANIFEST)}
    views = blocks.views(state.flat, [shape for _, shape in definition.tensors])
    save_file({name: view for (name, _), view in zip(definition.tensors, views, strict=True)}, files[WEIGHTS])
    values = {f"{name}/{block}": array for name, parts in state.state.items() for block, array in parts.items()}
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in values.items()}, files[OPTIMIZER])
    manifest = {
        "format": FORMAT,
        "group": definition.values(),
        "version": state.version,
        "steps": state.steps,
        "clocks": list(state.clocks),
        "samples": state.samples,
        "facts": dict(facts),
        "parts": {name: _part(files[name]) for name in (WEIGHTS, OPTIMIZER)},
    }
    files[MANIFEST].write_text(json.dumps({**manifest, "sha256": _seal(manifest)}, sort_keys=True, indent=1) + "\n")
    return files


def read(files: Mapping[str, Path], definition: Definition) -> Snapshot:
    """The snapshot in `files`, by name: every byte of them is verified first. Raises as `load`."""
    from safetensors.numpy import load_file

    manifest = _manifest(files)
    for name in (WEIGHTS, OPTIMIZER):
        if name not in files or _part(files[name]) != manifest["parts"].get(name):
            raise _bad(f"its file {name} is missing, or not what its manifest says: a byte of it has changed")
    _check(manifest["group"], definition.values())
    version, clocks = manifest["version"], tuple(manifest["clocks"])
    if definition.workers != len(clocks):
        version, clocks = _spread(version, clocks, definition)
    weights = load_file(files[WEIGHTS])
    if {name: array.shape for name, array in weights.items()} != dict(definition.tensors):
        raise _bad("its tensors are not those of its manifest")
    state: dict[str, dict[int, Any]] = {}
    for key, array in load_file(files[OPTIMIZER]).items():
        name, _, block = key.rpartition("/")
        state.setdefault(name, {})[int(block)] = array
    flat = np.concatenate([weights[name].reshape(-1) for name, _ in definition.tensors]).astype(np.float32, copy=False)
    return Snapshot(
        state=GroupState(
            version=version,
            steps=manifest["steps"],
            clocks=clocks,
            samples=manifest["samples"],
            flat=flat,
            state=state,
        ),
        facts=manifest["facts"],
    )


def _manifest(files: Mapping[str, Path]) -> dict[str, Any]:
    if MANIFEST not in files or files[MANIFEST].stat().st_size > _MOST:
        raise _bad(f"it has no {MANIFEST}")
    try:
        found = json.loads(files[MANIFEST].read_bytes())
        sealed = found.pop("sha256", "")
    except (ValueError, AttributeError) as error:
        raise _bad("its manifest cannot be read") from error
    if sealed != _seal(found):
        raise _bad("its manifest is not as it was written: a byte of it has changed")
    if found["format"] != FORMAT:
        raise _bad(f"it is of format {found['format']}, and this release knows {FORMAT}")
    return dict(found)


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if found["tensors"] != wanted["tensors"]:
        raise _wrong("it is of another model")
    for key in sorted({*found["rule"], *wanted["rule"]}):
        kept, now = found["rule"].get(key), wanted["rule"].get(key)
        if kept != now:
            raise _wrong(f"it is of another {key}: {json.dumps(kept)}, not {json.dumps(now)}")


def _spread(version: int, clocks: tuple[int, ...], definition: Definition) -> tuple[int, tuple[int, ...]]:
    """Version and clocks for another number of workers, who can only go on together where those before stood still."""
    if len({*clocks}) != 1:
        raise _wrong(f"its {len(clocks)} workers were at different steps: others cannot go on for them")
    way = definition.rule.get("consistency", {})
    rounds = way.get("mode", "MODE_BSP") == "MODE_BSP" or (way["mode"] == "MODE_SSP" and not way.get("staleness"))
    return version if rounds else clocks[0] * definition.workers, (clocks[0],) * definition.workers


def _part(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _bad(why: str) -> DataLoss:
    return DataLoss(f"the snapshot cannot be used: {why}", reason="BAD_SNAPSHOT")


def _wrong(why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the snapshot does not fit: {why}", reason="WRONG_SNAPSHOT")
