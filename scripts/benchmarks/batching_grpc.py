"""What dynamic batching gains over gRPC: answers a second of a model with a fixed cost a run, with and without it."""

import argparse
import json
import statistics
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from batching import PROMISED, FixedCost
from peers import loadgen
from rich.console import Console
from rich.table import Table

from tests.support.batching import marked
from tests.support.oipmodels import configuration, tensor
from tests.support.oipserver import oip_server
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.configuration import DynamicBatching
from tidemill.inference.scheduling import dynamic
from tidemill.tensors.dtypes import DataType

WAYS = {"unbatched": None, "dynamic": DynamicBatching(), "delayed": DynamicBatching(delay=0.001)}


def main() -> int:
    """Measure in turns, print, and write JSON when asked; 1 when the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=8, help="requests in flight on each connection")
    parser.add_argument("--cost-ms", type=float, default=2.0, help="of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    loadgen.require()
    x, y = [tensor("x", DataType.INT64, (4,))], [tensor("y", DataType.INT64, (4,))]
    versions = {
        (way, 1): (
            configuration(way, x, y, max_batch=64, instances=1, dynamic=how),
            FixedCost(options.cost_ms / 1000),
        )
        for way, how in WAYS.items()
    }
    found: dict[str, list[loadgen.Load]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, oip_server(versions, choices=(dynamic.choose,), sample=0.0) as server:
        files = {way: request(server.stub, way, Path(folder)) for way in WAYS}
        for _ in range(options.rounds):
            for way, file in files.items():
                load = loadgen.drive(
                    server.address, file, options.seconds, connections=options.connections, streams=options.streams
                )
                if load.failed:
                    raise RuntimeError(f"{way}: {load.failed} calls failed")
                found[way].append(load)
        rows = {key[0]: loaded.statistics.snapshot() for key, loaded in server.loaded.items()}
    table = Table("way", "answers/s", "times unbatched", "rows a run", "p50 ms", "p99 ms")
    ratios = {}
    for way, loads in found.items():
        pairs = zip(loads, found["unbatched"], strict=True)
        ratios[way] = statistics.median(one.rate / base.rate for one, base in pairs)
        table.add_row(
            way,
            f"{statistics.median(one.rate for one in loads):.0f}",
            f"{ratios[way]:.1f}",
            f"{rows[way].inferences / rows[way].executions:.1f}",
            f"{statistics.median(one.p50 for one in loads):.1f}",
            f"{statistics.median(one.p99 for one in loads):.1f}",
        )
    console = Console()
    console.print(table)
    callers = options.connections * options.streams
    console.print(
        f"{callers} callers, {options.cost_ms:g} ms a run, one server process, median of {options.rounds}; "
        f"promised: {PROMISED:g} times unbatched at 64 callers and 2 ms"
    )
    if options.json:
        rates = {way: [load.rate for load in loads] for way, loads in found.items()}
        options.json.write_text(json.dumps({"callers": callers, "times_unbatched": ratios, "rates": rates}, indent=1))
    return int(ratios["dynamic"] < PROMISED)


def request(stub: object, model: str, folder: Path) -> Path:
    """The file of a request, as gRPC frames it; the answer to it was checked."""
    values = np.full((1, 4), 7, np.int64)
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[values.tobytes()])
    message.inputs.add(name="x", datatype="INT64", shape=values.shape)
    answer = stub.ModelInfer(message, timeout=20)  # type: ignore[attr-defined]
    assert answer.raw_output_contents[0] == marked(values).tobytes()
    data = message.SerializeToString()
    path = folder / f"{model}.req"
    path.write_bytes(b"\0" + struct.pack(">I", len(data)) + data)
    return path


if __name__ == "__main__":
    sys.exit(main())
