"""tritonclient over HTTP, and what it has no method for: raw bodies and generated text."""

import gzip
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import ONES, RAMP, fails, one, outputs, pair, summed

checks = Checks()


@contextmanager
def http_client(server: Server) -> Iterator[Any]:
    """A client over HTTP."""
    with triton.InferenceServerClient(server.http, concurrency=4) as client:
        yield client


@checks
def health_and_metadata(server: Server) -> None:
    with http_client(server) as client:
        same([client.is_server_live(), client.is_server_ready()], [True, True])
        asked = [("simple",), ("simple", "1"), ("simple", "7"), ("late",), ("nope",)]
        same([client.is_model_ready(*names) for names in asked], [True, True, False, False, False])
        same(client.get_server_metadata()["name"], "triton")
        simple = client.get_model_metadata("simple", "1")
        same(simple["inputs"][0], {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]})
        same([simple["platform"], simple["versions"]], ["onnxruntime_onnx", ["1"]])
        config = client.get_model_config("simple")
        same([config["name"], config["max_batch_size"], config["input"][0]["data_type"]], ["simple", 8, "TYPE_INT32"])
        unknown = "Request for unknown model: 'nope' is not found"
        fails("404", unknown, lambda: client.get_model_metadata("nope"))
        fails("404", unknown, lambda: client.infer("nope", pair(triton)))
        fails("400", "expected 2 inputs but got 1 inputs", lambda: client.infer("simple", pair(triton)[:1]))


@checks
def binary_and_json(server: Server) -> None:
    with http_client(server) as client:
        for given in (True, False):
            for taken in (True, False):
                result = client.infer(
                    "simple",
                    pair(triton, binary_data=given),
                    outputs=outputs(triton, binary_data=taken),
                    request_id="7",
                )
                summed(result)
                same(result.get_response()["id"], "7")
        summed(client.infer("simple", pair(triton)))
        waiting = [client.async_infer("simple", pair(triton)) for _ in range(16)]
        for call in waiting:
            summed(call.get_result())
        doubled = client.infer("simple_ensemble", pair(triton)).as_numpy("OUTPUT0")
        same(doubled.tolist(), (2 * RAMP).tolist())


@checks
def compressed_both_ways(server: Server) -> None:
    with http_client(server) as client:
        for request in (None, "gzip", "deflate"):
            for response in (None, "gzip", "deflate"):
                for binary in (True, False):
                    summed(
                        client.infer(
                            "simple",
                            pair(triton, binary_data=binary),
                            outputs=outputs(triton, binary_data=binary),
                            request_compression_algorithm=request,
                            response_compression_algorithm=response,
                        )
                    )


@checks
def http_texts(server: Server) -> None:
    numbers = np.array([[str(number) for number in range(16)]], dtype=np.object_)
    with http_client(server) as client:
        for binary in (True, False):
            result = client.infer(
                "simple_string",
                pair(triton, numbers, numbers, binary_data=binary),
                outputs=outputs(triton, binary_data=binary),
            )
            same([int(text) for text in result.as_numpy("OUTPUT0")[0]], [2 * number for number in range(16)])
        words = np.array([["", "grün", "a" * 5000]], dtype=np.object_)
        for binary in (True, False):
            given = one(triton, "INPUT0", words, "BYTES", binary_data=binary)
            found = client.infer("simple_identity", [given], outputs=outputs(triton, "OUTPUT0", binary_data=binary))
            texts = [text.decode() if isinstance(text, bytes) else text for text in found.as_numpy("OUTPUT0")[0]]
            same(texts, words[0].tolist())


@checks
def http_classification(server: Server) -> None:
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 2] = 1
    with http_client(server) as client:
        for binary in (True, False):
            wanted = outputs(triton, "scores", class_count=1, binary_data=binary)
            found = client.infer("colours", [one(triton, "image", image, "FP32")], outputs=wanted).as_numpy("scores")
            text = found.ravel()[0]
            same(text.decode() if isinstance(text, bytes) else text, "1.000000:2:blue")


@checks
def http_sequences(server: Server) -> None:
    with http_client(server) as client:
        for sequence in (4001, "4002"):
            sums = [
                int(
                    client.infer(
                        "simple_sequence",
                        [one(triton, "INPUT", np.array([[value]], np.int32), "INT32")],
                        sequence_id=sequence,
                        sequence_start=value == 1,
                        sequence_end=value == 3,
                    ).as_numpy("OUTPUT")[0, 0]
                )
                for value in (1, 2, 3)
            ]
            same(sums, [1, 3, 6])


@checks
def http_control(server: Server) -> None:
    data = (server.repository / "simple" / "1" / "model.onnx").read_bytes()
    with http_client(server) as client:
        client.load_model("late")
        same(client.is_model_ready("late"), True)
        config = '{"backend": "onnxruntime", "max_batch_size": 4}'
        client.load_model("late", config=config, files={"file:5/model.onnx": data})
        same(client.get_model_config("late", "5")["max_batch_size"], 4)
        summed(client.infer("late", pair(triton), "5"))
        client.unload_model("late")
        same(client.is_model_ready("late"), False)
        same(
            {"name": "simple", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index(),
            True,
        )
        fails("500", "failed to load 'nope', failed to poll from model repository", lambda: client.load_model("nope"))


@checks
def http_statistics(server: Server) -> None:
    with http_client(server) as client:
        summed(client.infer("simple", pair(triton)))
        (found,) = client.get_inference_statistics("simple", "1")["model_stats"]
        same([found["name"], found["version"], found["inference_stats"]["success"]["count"] > 0], ["simple", "1", True])
        same(len(client.get_inference_statistics()["model_stats"]) >= 10, True)


@checks
def http_settings(server: Server) -> None:
    with http_client(server) as client:
        first = client.get_trace_settings("simple")
        client.update_trace_settings("simple", {"trace_rate": "9"})
        same(client.get_trace_settings("simple")["trace_rate"], "9")
        client.update_trace_settings("simple", {"trace_rate": None})
        same(client.get_trace_settings("simple"), first)
        client.update_log_settings({"log_verbose_level": 1})
        same(client.get_log_settings()["log_verbose_level"], 1)
        client.update_log_settings({"log_verbose_level": 0})


@checks
def http_shared_memory(server: Server) -> None:
    key = f"/clients-http-{os.getpid()}"
    handle = shm.create_shared_memory_region("http", key, 256)
    try:
        with http_client(server) as client:
            client.unregister_cuda_shared_memory()
            same(client.get_cuda_shared_memory_status(), [])
            shm.set_shared_memory_region(handle, [RAMP, ONES])
            client.register_system_shared_memory("http", key, 256)
            (status,) = client.get_system_shared_memory_status("http")
            same([status["name"], status["key"], status["byte_size"]], ["http", key, 256])
            inputs = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
            wanted = outputs(triton)
            for index in range(2):
                inputs[index].set_shared_memory("http", 64, offset=64 * index)
                wanted[index].set_shared_memory("http", 64, offset=128 + 64 * index)
            result = client.infer("simple", inputs, outputs=wanted)
            same(result.get_output("OUTPUT0")["shape"], [1, 16])
            same(shm.get_contents_as_numpy(handle, np.int32, [1, 16], offset=128).tolist(), (RAMP + ONES).tolist())
            same(shm.get_contents_as_numpy(handle, np.int32, [1, 16], offset=192).tolist(), (RAMP - ONES).tolist())
            wanted[0].set_shared_memory("http", 32)
            fails("400", "", lambda: client.infer("simple", inputs, outputs=wanted))
            fails("400", "", lambda: client.register_system_shared_memory("more", key, 10_000))
            client.unregister_system_shared_memory("http")
            fails("404", "http", lambda: client.get_system_shared_memory_status("http"))
    finally:
        shm.destroy_shared_memory_region(handle)


@checks
def offline_bodies(server: Server) -> None:
    """Bodies made and read by the client, sent by other means."""
    body, size = triton.InferenceServerClient.generate_request_body(pair(triton), outputs=outputs(triton))
    headers = {"Inference-Header-Content-Length": str(size)}
    status, answer, found = _post(server, "/v2/models/simple/infer", body, headers)
    length = found.get("Inference-Header-Content-Length")
    result = triton.InferenceServerClient.parse_response_body(answer, header_length=int(length) if length else None)
    same(status, 200)
    summed(result)
    words = np.full((1, 1000), "some text", dtype=np.object_)
    body, size = triton.InferenceServerClient.generate_request_body([one(triton, "INPUT0", words, "BYTES")])
    headers = {"Inference-Header-Content-Length": str(size)}
    for name, pressed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        status, answer, found = _post(
            server,
            "/v2/models/simple_identity/infer",
            pressed,
            {**headers, "Content-Encoding": name, "Accept-Encoding": name},
        )
        same([status, found.get("Content-Encoding")], [200, name])
        length = found.get("Inference-Header-Content-Length")
        result = triton.InferenceServerClient.parse_response_body(
            answer, header_length=int(length) if length else None, content_encoding=name
        )
        same(set(result.as_numpy("OUTPUT0").ravel().tolist()), {b"some text"})


@checks
def raw_binary_body(server: Server) -> None:
    """A body that is the one input, without any JSON."""
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    image = np.full((1, 3, 8, 8), 0.5, np.float32)
    status, answer, found = _post(server, "/v2/models/colours/infer", image.tobytes(), headers)
    same(status, 200)
    size = int(found["Inference-Header-Content-Length"])
    described = json.loads(answer[:size])
    same([described["model_name"], described["outputs"][0]["shape"]], ["colours", [1, 3]])
    same(np.frombuffer(answer[size:], np.float32).tolist(), [0.5] * 3)


@checks
def generated_text(server: Server) -> None:
    status, answer, _ = _post(server, "/v2/models/prompt/generate", json.dumps({"text_input": "hello"}).encode())
    same([status, json.loads(answer)["text_output"]], [200, "HELLO"])
    status, answer, found = _post(
        server, "/v2/models/prompt/generate_stream", json.dumps({"text_input": "a small world"}).encode()
    )
    same([status, found.get_content_type()], [200, "text/event-stream"])
    events = [json.loads(line.removeprefix("data: ")) for line in answer.decode().splitlines() if line]
    same([event["text_output"] for event in events], ["A", "SMALL", "WORLD"])
    status, answer, _ = _post(server, "/v2/models/nope/generate", json.dumps({"text_input": "x"}).encode())
    same([status, json.loads(answer)["error"]], [404, "Request for unknown model: 'nope' is not found"])


def _post(server: Server, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(f"http://{server.http}{path}", body, headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


if __name__ == "__main__":
    checks.main()
