"""A server over a directory of models."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import onnxmodels
from tests.support.clock import ManualClock
from tests.support.inference import Serving
from tests.support.modelfolders import Folder, factor, serve_folder
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import Exhausted, Internal, Invalid, NotFound, TidemillError, Unavailable
from tidemill.rpc.caller import Caller

ONNX = 'platform: "onnxruntime_onnx"\n'
ALL = ONNX + "version_policy { all {} }\n"
JSON = '{"backend": "onnxruntime"}'


class Repository:
    """Loads and unloads as clients do."""

    def __init__(self, address: str) -> None:
        self._caller = Caller(address, [pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]], timeout=20)
        self._stub: Any = pg.GRPCInferenceServiceStub(self._caller.channel)

    async def load(
        self, model: str, config: str = "", files: dict[str, bytes] | None = None, version: str = ""
    ) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        if version:
            request.parameters["version"].string_param = version
        if config:
            request.parameters["config"].string_param = config
        for path, data in (files or {}).items():
            request.parameters[f"file:{path}"].bytes_param = data
        await self._caller.unary(self._stub.RepositoryModelLoad, request)

    async def unload(self, model: str, dependents: bool = False, version: str = "") -> None:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        if version:
            request.parameters["version"].string_param = version
        if dependents:
            request.parameters["unload_dependents"].bool_param = True
        await self._caller.unary(self._stub.RepositoryModelUnload, request)

    async def config(self, model: str) -> Any:
        answer = await self._caller.unary(self._stub.ModelConfig, pb.ModelConfigRequest(name=model))
        return answer.config

    async def close(self) -> None:
        await self._caller.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "models")


@pytest.fixture
async def explicit(folder: Folder) -> AsyncIterator[tuple[Serving, Repository]]:
    """A server that loads by request, and the requests."""
    async with serve_folder(folder.root, model_control="explicit") as serving:
        repository = Repository(serving.app.address)
        yield serving, repository
        await repository.close()


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
        repository = Repository(serving.app.address)
        config = await repository.config("plain_onnx")
        assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("plain_onnx", 4, [2])
        assert config.HasField("dynamic_batching")
        for call in (repository.load("plain_onnx"), repository.unload("plain_onnx")):
            with pytest.raises(Unavailable) as refused:
                await call
            assert refused.value.message == "explicit model load / unload is not allowed if polling is enabled"
        await repository.close()


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


async def test_loads_and_unloads_by_request(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    assert await serving.states() == {}
    await repository.load("m")
    assert await factor(serving, "m") == (2, "1")
    await repository.load("m")  # again: nothing to do
    await repository.unload("m")
    assert not await serving.client.model_ready("m")
    with pytest.raises(NotFound, match="Request for unknown model: 'm' has no available versions"):
        await factor(serving, "m")
    with pytest.raises(Unavailable, match="Request for unknown model: 'm' version 1 is not at ready state"):
        await factor(serving, "m", "1")
    await until(lambda: _reason(serving, "m"), what="is unloaded")
    assert await _reason(serving, "m") == "unloaded"
    await repository.unload("m")
    await repository.load("m")
    assert await factor(serving, "m") == (2, "1")


async def _reason(serving: Serving, model: str) -> str:
    return next((entry.reason for entry in await serving.client.index() if entry.name == model), "")


async def test_failed_reload_leaves_the_old_content(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    await repository.load("m")
    folder.version("m", 1, b"broken")
    with pytest.raises(Internal, match="failed to load 'm'"):
        await repository.load("m")
    assert await factor(serving, "m") == (2, "1")
    assert await serving.states() == {"m/1": "READY"}
    assert "not an ONNX model" in await _reason(serving, "m")
    with pytest.raises(Internal, match="failed to load 'm'"):  # it is tried again
        await repository.load("m")
    folder.version("m", 1, onnxmodels.scale(7))
    await repository.load("m")
    assert await factor(serving, "m") == (7, "1")
    assert await _reason(serving, "m") == ""


async def test_failed_new_version_leaves_the_old_one(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    await repository.load("m")
    folder.version("m", 2, b"broken")
    with pytest.raises(Internal, match="failed to load 'm', version 2 is at UNAVAILABLE state"):
        await repository.load("m")
    assert await serving.states() == {"m/1": "READY", "m/2": "UNAVAILABLE"}
    assert await factor(serving, "m") == (2, "1")
    folder.version("m", 2, onnxmodels.scale(4))
    await repository.load("m")
    assert await factor(serving, "m") == (4, "2")
    assert not await serving.client.model_ready("m", "1")


async def test_broken_configuration_leaves_what_is_loaded(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2), ONNX)
    await repository.load("m")
    folder.put("m", {"config.pbtxt": "nonsense {"})
    with pytest.raises(Internal, match="failed to load 'm', failed to poll from model repository"):
        await repository.load("m")
    assert await factor(serving, "m") == (2, "1")


async def test_unknown_models(explicit: tuple[Serving, Repository]) -> None:
    _, repository = explicit
    with pytest.raises(Internal) as refused:
        await repository.load("nope")
    assert refused.value.message == "failed to load 'nope', failed to poll from model repository"
    with pytest.raises(NotFound):
        await repository.unload("nope")


TRAVERSAL = ["../m", "..", "m/..", "/m", "a/b", "m\\..", " ..", "", " ", "m\x00", "..%2f", "․․", "x" * 256, "m ", "~"]


@pytest.mark.parametrize("name", TRAVERSAL)
async def test_names_that_are_paths_are_refused(explicit: tuple[Serving, Repository], name: str) -> None:
    serving, repository = explicit
    for call in (repository.load(name), repository.unload(name)):
        with pytest.raises(Invalid):
            await call
    assert await serving.client.live()


async def test_configuration_by_request(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    folder.version("m", 2, onnxmodels.scale(3))
    await repository.load("m", '{"backend": "onnxruntime", "version_policy": {"specific": {"versions": [1]}}}')
    assert await factor(serving, "m") == (2, "1")
    await repository.load("m")
    assert await factor(serving, "m") == (3, "2")
    for wrong in ("{", "[]", '{"colour": 1}', '{"name": "other"}', "x" * 300_000):
        with pytest.raises(TidemillError, match="failed to load 'm'"):
            await repository.load("m", wrong)
    assert await factor(serving, "m") == (3, "2")


async def test_files_by_request(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    await repository.load("m")
    with pytest.raises(Internal, match="failed to load 'm', failed to poll from model repository"):
        await repository.load("m", files={"5/model.onnx": onnxmodels.scale(5)})
    assert await factor(serving, "m") == (2, "1")
    await repository.load("m", JSON, {"5/model.onnx": onnxmodels.scale(5)})
    assert await factor(serving, "m") == (5, "5")
    assert not await serving.client.model_ready("m", "1")
    await repository.load("only_given", JSON, {"1/model.onnx": onnxmodels.scale(6)})
    assert await factor(serving, "only_given") == (6, "1")
    with pytest.raises(Internal, match="failed to load 'only_given'"):
        await repository.load("only_given", JSON, {"1/model.onnx": b"broken"})
    assert await factor(serving, "only_given") == (6, "1")
    await repository.load("m")
    assert await factor(serving, "m") == (2, "1")
    assert not list(folder.root.rglob("5"))


PATHS = ["../1/model.onnx", "/etc/passwd", "1/../../x", "1\\model.onnx", "1/model.onnx\x00", "", "1//model.onnx", "./x",
         "1/.hidden", "a/" * 20 + "x", "C:/x", "1/" + "y" * 200]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_paths_that_leave_are_refused(folder: Folder, explicit: tuple[Serving, Repository], path: str) -> None:
    _, repository = explicit
    before = sorted(folder.root.rglob("*"))
    with pytest.raises(Invalid):
        await repository.load("m", JSON, {path: onnxmodels.scale(2)})
    assert sorted(folder.root.rglob("*")) == before


async def test_files_by_request_are_bounded(folder: Folder) -> None:
    async with serve_folder(folder.root, model_control="explicit", max_model_bytes=1000) as serving:
        repository = Repository(serving.app.address)
        with pytest.raises(Exhausted):
            await repository.load("m", JSON, {"1/model.onnx": b"x" * 2000})
        await repository.close()


async def test_no_swap_above_the_memory_ceiling(folder: Folder) -> None:
    size = len(onnxmodels.scale(2))
    folder.version("m", 1, onnxmodels.scale(2))
    async with serve_folder(folder.root, model_control="explicit", max_model_memory=size * 3 // 2) as serving:
        repository = Repository(serving.app.address)
        await repository.load("m")
        folder.version("m", 2, onnxmodels.scale(3))
        with pytest.raises(Internal, match="all models together may have"):
            await repository.load("m")
        assert await factor(serving, "m") == (2, "1")
        await repository.unload("m")
        await until(lambda: _loads(repository, "m"), what="there is room")
        assert await factor(serving, "m") == (3, "2")
        await repository.close()


async def _loads(repository: Repository, model: str) -> bool:
    try:
        await repository.load(model)
    except Internal:
        return False
    return True


async def test_loads_some_at_the_start(folder: Folder) -> None:
    for model in ("a", "b"):
        folder.version(model, 1, onnxmodels.scale(2))
    async with serve_folder(folder.root, model_control="explicit", load_models=("a",)) as serving:
        assert await serving.client.model_ready("a")
        index = [(entry.name, entry.version, entry.state) for entry in await serving.client.index()]
        assert index == [("a", "1", "READY"), ("b", "", "")]
    async with serve_folder(folder.root, model_control="explicit", load_models=("*",)) as serving:
        assert await serving.states() == {"a/1": "READY", "b/1": "READY"}
    with pytest.raises(NotFound, match="the repository has no model 'nope'"):
        async with serve_folder(folder.root, model_control="explicit", load_models=("nope",)):
            pass


async def test_one_version_at_a_time(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    for number in (1, 2, 3):
        folder.version("m", number, onnxmodels.scale(number))
    await repository.load("m", version="1")
    await repository.load("m", version="2")
    assert await serving.states() == {"m/1": "READY", "m/2": "READY"}
    await repository.unload("m", version="2")
    assert await factor(serving, "m") == (1, "1")
    assert not await serving.client.model_ready("m", "2")
    for wrong in ("x", "0", "-1", "1.5"):
        with pytest.raises(Invalid):
            await repository.load("m", version=wrong)
    with pytest.raises(Internal, match="it has no version 9"):
        await repository.load("m", version="9")
    with pytest.raises(NotFound):
        await repository.unload("m", version="3")
    assert await factor(serving, "m") == (1, "1")


async def test_many_load_and_unload_the_same_model(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    problems: list[str] = []

    async def client(number: int) -> None:
        for turn in range(6):
            if (number + turn) % 3 == 0:
                await repository.unload("m")
            elif (number + turn) % 3 == 1:
                await repository.load("m")
            else:
                problems.append(await _problem(serving))

    await repository.load("m")
    await asyncio.gather(*map(client, range(16)))
    allowed = ("", "Request for unknown model: 'm' has no available versions")
    assert set(problems) <= {*allowed, "Request for unknown model: 'm' version 1 is not at ready state"}
    await repository.load("m")
    assert await factor(serving, "m") == (2, "1")


async def _problem(serving: Serving) -> str:
    """What a request for m gets; "" for the right answer."""
    try:
        value, _ = await factor(serving, "m")
    except TidemillError as error:
        return error.message
    return "" if value == 2 else f"wrong: {value}"


async def test_no_request_fails_while_versions_change(folder: Folder, explicit: tuple[Serving, Repository]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(1))
    await repository.load("m")
    stop = threading.Event()
    answers: list[tuple[float, str]] = []

    async def ask() -> None:
        while not stop.is_set():
            answers.append(await factor(serving, "m"))

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for number in range(2, 12):
        folder.version("m", number, onnxmodels.scale(number))
        await repository.load("m")
        folder.version("m", number + 100, b"broken")
        with pytest.raises(Internal):
            await repository.load("m")
        (folder.root / f"m/{number + 100}/model.onnx").unlink()
        (folder.root / f"m/{number + 100}").rmdir()
    stop.set()
    await asyncio.gather(*asking)
    assert all(str(int(value)) == version for value, version in answers)
    assert len({version for _, version in answers}) > 3


async def test_polls(folder: Folder) -> None:
    clock = ManualClock()
    folder.version("m", 1, onnxmodels.scale(2))
    async with serve_folder(folder.root, model_control="poll", poll_seconds=15, clock=clock) as serving:

        async def looked() -> None:
            """Let it look at the repository once."""
            await until(lambda: clock.sleeping >= 2)
            await clock.advance(15)

        assert await factor(serving, "m") == (2, "1")
        repository = Repository(serving.app.address)
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


async def test_no_such_repository(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        async with serve_folder(tmp_path / "nowhere"):
            pass
