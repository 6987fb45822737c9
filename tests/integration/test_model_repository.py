"""A server over a directory of models."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support import onnxmodels, torchmodels
from tests.support.clock import ManualClock
from tests.support.modelfolders import ONNX, Control, Folder, ensemble, factor, serve_folder, settings
from tests.support.torchmodels import BATCH
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import Invalid, NotFound, Unavailable
from tidemill.inference.config import LARGEST_MESSAGE


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "models")


async def test_serves_a_directory_without_configurations(folder: Folder) -> None:
    folder.version("plain_onnx", 1, onnxmodels.scale(2))
    folder.version("plain_onnx", 3, onnxmodels.scale(3))
    folder.put("plain_onnx", {"03/model.onnx": b"ignored", "notes/readme.txt": "ignored", "0/model.onnx": b"ignored"})
    async with serve_folder(folder.root) as serving:
        assert await factor(serving, "plain_onnx") == (3, "3")
        assert await serving.states() == {"plain_onnx/3": "READY"}
        metadata = await serving.client.metadata("plain_onnx")
        assert list(metadata.inputs[0].shape) == [-1, 2]
        assert metadata.platform == "onnxruntime_onnx"
        repository = Control(serving.app.address)
        config = await repository.config("plain_onnx")
        assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("plain_onnx", 4, [2])
        assert not config.HasField("dynamic_batching")
        for call in (repository.load("plain_onnx"), repository.unload("plain_onnx")):
            with pytest.raises(Unavailable) as refused:
                await call
            assert refused.value.message == "explicit model load / unload is not allowed if polling is enabled"
        await repository.close()


@pytest.mark.parametrize("file", ["model.pt", "model.pt2"])
async def test_serves_pytorch_models_without_configurations(folder: Folder, file: str) -> None:
    scale, x = torchmodels.Scale(), torchmodels.rows(2, 3)
    data = torchmodels.traced(scale, x) if file == "model.pt" else torchmodels.exported(scale, (x,), ({0: BATCH},))
    folder.put("plain", {f"1/{file}": data})
    async with serve_folder(folder.root) as serving:
        metadata = await serving.client.metadata("plain")
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("x", "FP32", [-1, 3])]
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
            ("OUTPUT__0", "FP32", [-1, 3])
        ]
        repository = Control(serving.app.address)
        config = await repository.config("plain")
        assert (config.backend, config.max_batch_size, list(config.input[0].dims)) == ("pytorch", 4, [3])
        await repository.close()
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        assert (await serving.client.infer("plain", {"x": rows})).outputs["OUTPUT__0"].tolist() == (2 * rows).tolist()


async def test_answers_are_kept_of_models_that_ask_for_it(folder: Folder) -> None:
    for name, asks in (("kept", "response_cache { enable: true }"), ("fresh", "")):
        folder.version(name, 1, onnxmodels.scale(2), f"{ONNX}{asks}")
    found = {}
    async with serve_folder(folder.root) as serving, grpc.aio.insecure_channel(serving.app.address) as channel:
        stub: Any = pg.GRPCInferenceServiceStub(channel)
        for name in ("kept", "fresh"):
            for _ in range(3):
                assert await factor(serving, name) == (2, "1")
            (books,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name=name))).model_stats
            told = books.inference_stats
            found[name] = (books.execution_count, told.success.count, told.cache_hit.count, told.cache_miss.count)
    assert found == {"kept": (1, 3, 2, 1), "fresh": (3, 3, 0, 0)}


async def test_version_policies(folder: Folder) -> None:
    for model, policy in (
        ("all", "all {}"),
        ("two", "latest { num_versions: 2 }"),
        ("some", "specific { versions: 2 }"),
    ):
        for number in (1, 2, 10):
            config = f"{ONNX}version_policy {{ {policy} }}"
            folder.version(model, number, onnxmodels.scale(number), config)
    async with serve_folder(folder.root) as serving:
        assert sorted(await serving.states()) == ["all/1", "all/10", "all/2", "some/2", "two/10", "two/2"]
        assert await factor(serving, "all") == (10, "10")
        assert await factor(serving, "all", "1") == (1, "1")
        with pytest.raises(NotFound, match=r"Request for unknown model: 'some' version 1 is not found"):
            await factor(serving, "some", "1")


async def test_bad_models_take_nobody_down(folder: Folder, tmp_path: Path) -> None:
    folder.version("good", 1, onnxmodels.scale(2))
    folder.version("corrupt", 1, b"\x08\x01 not a model")
    folder.version("wrong_config", 1, onnxmodels.scale(2), 'platform: "onnxruntime_onnx" colour: 1')
    folder.version("wrong_name", 1, onnxmodels.scale(2), 'name: "other"')
    folder.version(
        "mismatch",
        1,
        onnxmodels.scale(2),
        ONNX + 'max_batch_size: 4 input { name: "z" data_type: TYPE_FP32 '
        'dims: 2 } output { name: "y" data_type: TYPE_FP32 dims: 2 }',
    )
    folder.put("empty", {"config.pbtxt": ONNX})
    folder.put("custom", {"1/model.plan": b"", "config.pbtxt": 'platform: "tensorrt_plan"'})
    folder.version("outside", 1, onnxmodels.external("initializer"))
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(onnxmodels.scale(9))
    folder.put("leaves", {"config.pbtxt": ONNX, "1/x": b""})
    (folder.root / "leaves/1/model.onnx").symlink_to(secret)
    (folder.root / "linked").symlink_to(tmp_path)
    async with serve_folder(folder.root) as serving:
        assert await factor(serving, "good") == (2, "1")
        index = {entry.name: entry for entry in await serving.client.index()}
        assert {name for name, entry in index.items() if entry.state == "READY"} == {"good"}
        assert {entry.state for name, entry in index.items() if name != "good"} == {"UNAVAILABLE"}
        assert "unexpected directory name" in index["wrong_name"].reason
        assert "leaves the repository" in index["leaves"].reason
        assert "leaves the repository" in index["linked"].reason
        assert "external data" in index["outside"].reason or "other files" in index["outside"].reason
        assert index["empty"].reason == "no version is available"


async def test_links_inside_of_the_repository_are_followed(folder: Folder) -> None:
    folder.version("real", 1, onnxmodels.scale(5))
    (folder.root / "alias/1").mkdir(parents=True)
    (folder.root / "alias/1/model.onnx").symlink_to("../../real/1/model.onnx")
    async with serve_folder(folder.root) as serving:
        assert await factor(serving, "alias") == (5, "1")


async def test_model_files_of_other_names_labels_and_warm_ups(folder: Folder) -> None:
    config = (
        ONNX
        + """
    default_model_filename: "net.onnx"
    max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: 2 }
    output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }
    model_warmup { name: "zeros" batch_size: 2
        inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }
    model_warmup { name: "file" inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "x" } } }
    """
    )
    folder.put(
        "named",
        {"1/net.onnx": onnxmodels.scale(2), "config.pbtxt": config, "labels.txt": "a\nb\n", "warmup/x": b"12345678"},
    )
    failing = config.replace("dims: 2 input_data_file", "dims: 3 input_data_file")
    folder.put(
        "failing",
        {"1/net.onnx": onnxmodels.scale(2), "config.pbtxt": failing, "labels.txt": "a", "warmup/x": b"12345678"},
    )
    async with serve_folder(folder.root) as serving:
        assert await factor(serving, "named") == (2, "1")
        assert "warm-up 'file' failed" in await serving.reason("failing", 1)


async def test_reshape(folder: Folder) -> None:
    config = (
        ONNX
        + """
    max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: 2 reshape { shape: [ 1, 2 ] } }
    output { name: "y" data_type: TYPE_FP32 dims: 2 reshape { shape: [ 1, 2 ] } }
    """
    )
    folder.version("reshaped", 1, onnxmodels.scale(2, shape=("n", 1, 2)), config)
    async with serve_folder(folder.root) as serving:
        assert await factor(serving, "reshaped") == (2, "1")


async def test_ensembles_of_what_is_not_there(folder: Folder) -> None:
    folder.version("good", 1, onnxmodels.scale(2))
    folder.version("broken", 1, b"broken")
    for name, steps in (("a", ("b",)), ("b", ("a",)), ("c", ("broken",)), ("d", ("nowhere",)), ("e", ("good",))):
        folder.put(name, {"config.pbtxt": ensemble(*steps), "1/.keep": b""})
    async with serve_folder(folder.root) as serving:
        states = await serving.states()
        assert {name for name, state in states.items() if state == "READY"} == {"good/1", "e/1"}
        for name, step in (("c", "broken"), ("d", "nowhere")):
            reason = await serving.reason(name, 1)
            assert reason == f"ensemble '{name}' depends on '{step}' which has no loaded version"
        assert "is made of itself" in await serving.reason("a", 1) + await serving.reason("b", 1)


async def test_polls(folder: Folder) -> None:
    clock = ManualClock()
    folder.version("m", 1, onnxmodels.scale(2))
    async with serve_folder(folder.root, model_control="poll", poll_seconds=15, clock=clock) as serving:

        async def looked() -> None:
            """Let it look at the repository once."""
            await until(lambda: clock.sleeping >= 2)
            await clock.advance(15)

        assert await factor(serving, "m") == (2, "1")
        repository = Control(serving.app.address)
        with pytest.raises(Unavailable, match="explicit model load / unload is not allowed if polling is enabled"):
            await repository.load("m")
        await repository.close()
        folder.version("m", 2, b"broken")
        folder.version("new", 1, onnxmodels.scale(8))
        await looked()
        await serving.serves("new")
        assert "not an ONNX model" in await serving.reason("m", 2)
        assert await factor(serving, "m") == (2, "1")
        folder.version("m", 2, onnxmodels.scale(3))
        await looked()
        await serving.serves("m", "2")
        folder.put("m", {"config.pbtxt": "nonsense {"})
        (folder.root / "new/1/model.onnx").unlink()
        (folder.root / "new/1").rmdir()
        (folder.root / "new").rmdir()
        await looked()

        async def gone() -> bool:
            return "new/1" not in await serving.states()

        await until(gone, what="new is gone")
        assert await factor(serving, "m") == (3, "2")
        with pytest.raises(NotFound, match="Request for unknown model: 'new' is not found"):
            await factor(serving, "new")


async def test_messages_as_large_as_clients_may_send_them(folder: Folder) -> None:
    folder.version("m", 1, onnxmodels.scale(2))
    with pytest.raises(Invalid, match="max_message_bytes"):
        settings(folder.root, max_message_bytes=LARGEST_MESSAGE + 1)
    async with serve_folder(folder.root, max_message_bytes=LARGEST_MESSAGE) as serving:
        assert await factor(serving, "m") == (2, "1")


async def test_no_such_repository(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"model_repository: .*nowhere is no directory"):
        settings(tmp_path / "nowhere")
