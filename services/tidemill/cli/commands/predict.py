"""`tidemill predict`: ask a served model."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.cli import connection
from tidemill.cli.commands.base import Command
from tidemill.cli.output import console, print_json, print_table
from tidemill.clients.inference import InferenceClient
from tidemill.clients.registry import RegistryClient
from tidemill.errors import Invalid, TidemillError

SHOWN = 20


class Predict(Command):
    """Sends samples from a file to a model over the Open Inference Protocol."""

    help = "ask a served model about samples in a file"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("model", help="name of the model")
        parser.add_argument(
            "input", help=".npy, .npz (arrays by input name), .json (a list or {input: list}), or - for JSON"
        )
        parser.add_argument("--version", default="", help="number or alias; the default alias when left out")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the model answered."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    arrays = await asyncio.to_thread(_read, options.input)
    with where.traced("tidemill predict") as (telemetry, trace_id):
        async with InferenceClient(where.inference, tracer=telemetry.tracer) as client:
            metadata = await client.metadata(options.model, options.version)
            kinds = {tensor.name: tensor.datatype for tensor in metadata.inputs}
            inputs = {name or next(iter(kinds)): array for name, array in arrays.items()}
            inputs = {name: _fit(array, kinds.get(name, "")) for name, array in inputs.items()}
            began = time.perf_counter()
            result = await client.infer(options.model, inputs, version=options.version)
            milliseconds = (time.perf_counter() - began) * 1e3
    if options.json:
        outputs = {name: _plain(array) for name, array in result.outputs.items()}
        print_json({"model_version": result.model_version, "outputs": outputs, "trace_id": trace_id})
        return 0
    labels = await _labels(where, options.model, result.model_version)
    for name, array in result.outputs.items():
        _table(name, array, labels)
    console().print(f"version {result.model_version}, {milliseconds:.1f} ms, trace {trace_id}")
    return 0


def _read(source: str) -> dict[str, Any]:
    """Arrays by input name; "" stands for the model's first input."""
    try:
        if source != "-" and Path(source).suffix in (".npy", ".npz"):
            loaded = np.load(source, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        found = json.loads(text)
        return {k: np.asarray(v) for k, v in found.items()} if isinstance(found, dict) else {"": np.asarray(found)}
    except (OSError, ValueError) as error:
        raise Invalid(f"{source}: {error}") from error


def _fit(array: Any, datatype: str) -> Any:
    """JSON and files know fewer types than models: numbers become what the model takes."""
    wanted = {"FP16": "f2", "FP32": "f4", "FP64": "f8", "INT64": "i8", "INT32": "i4", "UINT8": "u1", "BOOL": "?"}.get(
        datatype
    )
    return array.astype(wanted) if wanted and array.dtype.kind in "biuf" else array


def _plain(array: Any) -> Any:
    return [item.decode(errors="replace") for item in array.ravel()] if array.dtype == object else array.tolist()


async def _labels(where: connection.Connection, model: str, version: str) -> list[str]:
    try:
        async with RegistryClient(where.registry, timeout=2) as client:
            return list((await client.get_version(model, version)).signature.labels)
    except TidemillError:  # labels only decorate: the answer is complete without them
        return []


def _table(name: str, array: Any, labels: list[str]) -> None:
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 2:
        console().print(f"{name}: {np.array2string(array, threshold=200, precision=4)}")
        return
    rows = []
    for number, row in enumerate(array[:SHOWN]):
        order = np.argsort(-row)[:3]
        named = [labels[i] if i < len(labels) else str(i) for i in order]
        others = ", ".join(f"{n} {row[i]:.3f}" for n, i in zip(named[1:], order[1:], strict=True))
        rows.append((number, named[0], f"{row[order[0]]:.4f}", others))
    print_table(["sample#", f"{name}: class", "value#", "next"], rows)
    if len(array) > SHOWN:
        console().print(f"… and {len(array) - SHOWN} more (--json prints all)")
