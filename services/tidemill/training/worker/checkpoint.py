"""Parameters and the state of their optimizer as files: safetensors for the values, JSON for what they are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tidemill.errors import DataLoss
from tidemill.tensors import blocks
from tidemill.training.strategies.base import Flat

WEIGHTS = "weights.safetensors"
STATE = "optimizer.safetensors"
DESCRIPTION = "checkpoint.json"
FORMAT = 1

Tensors = Sequence[tuple[str, tuple[int, ...]]]


def write(folder: Path, flat: Flat, tensors: Tensors, description: Mapping[str, Any]) -> dict[str, Path]:
    """Write parameters and their description into `folder`; the files by name."""
    weights, text = folder / WEIGHTS, folder / DESCRIPTION
    views = blocks.views(flat, [shape for _, shape in tensors])
    save_file({name: np.ascontiguousarray(view) for (name, _), view in zip(tensors, views, strict=True)}, weights)
    text.write_text(json.dumps({"format": FORMAT, **description}, sort_keys=True, indent=1) + "\n")
    return {WEIGHTS: weights, DESCRIPTION: text}


def read(files: Mapping[str, Path], tensors: Tensors) -> Flat:
    """The parameters in a checkpoint's files.

    Raises:
        DataLoss: they are not those of such a model.
    """
    if WEIGHTS not in files:
        raise DataLoss(f"the checkpoint has no file {WEIGHTS}", reason="BAD_CHECKPOINT")
    found = load_file(files[WEIGHTS])
    if {name: array.shape for name, array in found.items()} != dict(tensors):
        raise DataLoss("the checkpoint is of another model", reason="BAD_CHECKPOINT")
    flat: Flat = np.concatenate([found[name].reshape(-1) for name, _ in tensors]).astype(np.float32, copy=False)
    return flat


def write_state(folder: Path, state: Mapping[str, Flat]) -> dict[str, Path]:
    """Write the state of an optimizer beside its parameters; the file by name."""
    save_file(dict(state), folder / STATE)
    return {STATE: folder / STATE}


def read_state(files: Mapping[str, Path]) -> dict[str, Flat]:
    """The state of an optimizer in a checkpoint's files.

    Raises:
        DataLoss: there is none.
    """
    if STATE not in files:
        raise DataLoss(f"the checkpoint has no file {STATE}", reason="BAD_CHECKPOINT")
    found: dict[str, Flat] = load_file(files[STATE])
    return found


def read_description(files: Mapping[str, Path]) -> dict[str, Any]:
    """What is written about a checkpoint.

    Raises:
        DataLoss: nothing that this code understands.
    """
    try:
        found = json.loads(files[DESCRIPTION].read_text())
    except (KeyError, ValueError) as error:
        raise DataLoss("the checkpoint has no description", reason="BAD_CHECKPOINT") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataLoss("the checkpoint is of another format", reason="BAD_CHECKPOINT")
    return found
