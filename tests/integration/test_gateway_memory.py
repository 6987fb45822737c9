"""How much memory a tensor takes on its way through the gateway."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from tests.integration.test_gateway_process import process
from tests.support.scripted_inference import serve_inference
from tests.support.transfer_memory import peak
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb

SIZE = 64 << 20
IN = 2.3
"""The body and the message made of it, then the message and gRPC's copy of it; and a little."""
OUT = 3.3
"""What gRPC makes of what arrives: its buffers, as parts, and joined; and a little. The gateway makes nothing more."""


def answer(size: int) -> pb.ModelInferResponse:
    """An answer with one tensor of so many bytes."""
    made: Any = pb.ModelInferResponse(model_name="m", raw_output_contents=[bytes(size)])
    made.outputs.add(name="y", datatype="UINT8", shape=[size])
    found: pb.ModelInferResponse = made
    return found


async def growth(tmp_path: Path, sent: int, received: int) -> float:
    """By how many times `SIZE` the peak of a new gateway grows when tensors of these sizes pass, after small ones."""
    announced = tmp_path / "ports"
    async with (
        serve_inference(max_message=SIZE + (1 << 20)) as (inference, address),
        process(ANNOUNCE_FILE=str(announced), TIDEMILL_INFERENCE_ADDRESS=address, MAX_BODY_MIB="65") as gateway,
    ):
        await until(announced.exists)
        port = json.loads(announced.read_text())["grpc"]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            found = []
            for number in (1000, 0):
                given, made = number or sent, number or received
                inference.answers = {"ModelInfer": answer(made)}
                tensor = {"name": "x", "datatype": "UINT8", "shape": [given], "parameters": {"binary_data_size": given}}
                head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
                headers = {"Inference-Header-Content-Length": str(len(head)), "Accept-Encoding": "identity"}
                got = await http.post("/v2/models/m/infer", content=head + bytes(given), headers=headers)
                assert got.status_code == 200
                assert len(got.content) == int(got.headers["Inference-Header-Content-Length"]) + made
                assert len(inference.requests[-1].raw_input_contents[0]) == given
                inference.reset()
                found.append(await asyncio.to_thread(peak, gateway.pid))
    return (found[1] - found[0]) / SIZE


async def test_a_large_tensor_on_its_way_in(tmp_path: Path) -> None:
    assert await growth(tmp_path, SIZE, 1000) < IN


async def test_a_large_tensor_on_its_way_out(tmp_path: Path) -> None:
    assert await growth(tmp_path, 1000, SIZE) < OUT
