"""`tidemill predict`: ask a served model."""

import argparse
import asyncio
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import print_json, print_table
from tidemill.clients.inference import InferenceClient
from tidemill.clients.registry import RegistryClient
from tidemill.errors import Invalid, TidemillError
from tidemill.tensors import dtypes

SHOWN = 20


class Predict(Command):
    """Sends samples from a file to a model over the Open Inference Protocol."""

    help = "ask a served model about samples in a file"
    examples = (
        "tidemill predict digits samples.npy",
        "tidemill predict digits samples.npz --version 2",
        "echo '[[5.1, 3.5, 1.4, 0.2]]' | tidemill predict iris -",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("model", metavar="MODEL", help="name of the model")
        parser.add_argument(
            "input",
            metavar="INPUT",
            help=".npy, .npz (arrays by input name), .json (a list of samples, or {input: list}), or - for JSON on "
            "standard input; the first dimension counts the samples",
        )
        parser.add_argument(
            "--version", metavar="VERSION", default="", help="number or alias; the server chooses when left out"
        )
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the model answered."""
        arrays = read(options.input)  # before there is a loop, which would make Ctrl-C wait for the end of the input
        return asyncio.run(_run(options, arrays))


async def _run(options: argparse.Namespace, arrays: dict[str, Any]) -> int:
    where = connection.Connection(options)
    with where.traced("tidemill predict") as (telemetry, trace_id):
        async with where.client("inference", InferenceClient, tracer=telemetry.tracer) as client:
            metadata = await client.metadata(options.model, options.version)
            kinds = {tensor.name: tensor.datatype for tensor in metadata.inputs}
            named = {name or next(iter(kinds)): array for name, array in arrays.items()}
            inputs = {name: dtypes.fit(a, kinds[name]) if name in kinds else a for name, a in named.items()}
            began = time.perf_counter()
            result = await client.infer(options.model, inputs, version=options.version)
            milliseconds = (time.perf_counter() - began) * 1e3
    if options.json:
        outputs = {name: _plain(array.tolist()) for name, array in result.outputs.items()}
        print_json({"model_version": result.model_version, "outputs": outputs, "trace_id": trace_id})
        return 0
    labels = await _labels(where, options.model, result.model_version)
    for name, array in result.outputs.items():
        _show(name, array, labels)
    print(f"version {result.model_version}, {milliseconds:.1f} ms, trace {trace_id}")
    return 0


def read(source: str) -> dict[str, Any]:
    """Arrays by input name; "" stands for the model's first input.

    Args:
        source: a file, or `-` for JSON on standard input.

    Raises:
        Invalid: it holds no such thing.
        OSError: it cannot be read.
    """
    shown = "standard input" if source == "-" else source
    try:
        if source != "-" and Path(source).suffix in (".npy", ".npz"):
            with Path(source).open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        found = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        kind = "JSON" if source == "-" or Path(source).suffix == ".json" else "a .npy, .npz or .json file"
        raise Invalid(f"{shown} is not {kind}: {error}") from error
    named = found if isinstance(found, dict) else {"": found}
    if not named:
        raise Invalid(f"{shown} holds no input")
    return {name: _array(value, shown) for name, value in named.items()}


def _array(value: Any, shown: str) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:
        raise Invalid(f"{shown}: lists of different lengths make no array") from None
    if array.dtype.kind not in "biufU" or not array.ndim:
        raise Invalid(f"{shown}: a list of numbers or of texts was expected")
    return array


def _plain(value: Any) -> Any:
    """JSON knows texts, not bytes."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


async def _labels(where: connection.Connection, model: str, version: str) -> list[str]:
    try:
        async with RegistryClient(where.addresses["registry"], timeout=2) as client:
            return list((await client.get_version(model, version)).signature.labels)
    except TidemillError:  # labels only decorate: the answer is complete without them
        return []


def _show(name: str, array: Any, labels: list[str]) -> None:
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        print(f"{name}: {np.array2string(array, threshold=200, precision=4)}")
        return
    rows = []
    for number, row in enumerate(array[:SHOWN]):
        order = np.argsort(-row)[:3]
        named = [labels[i] if i < len(labels) else str(i) for i in order]
        others = ", ".join(f"{n} {row[i]:.3f}" for n, i in zip(named[1:], order[1:], strict=True))
        rows.append((number, named[0], f"{row[order[0]]:.4f}", others))
    print_table(["sample#", f"{name}: class", "score#", "next"], rows, fold=[f"{name}: class", "next"])
    if len(array) > SHOWN:
        print(f"… and {len(array) - SHOWN} more (--json prints all)")
