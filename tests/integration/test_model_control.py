"""Models that are loaded and unloaded by request."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnxmodels
from tests.support.inference import Serving
from tests.support.modelfolders import JSON, ONNX, Control, Folder, ensemble, factor, serve_folder
from tests.support.wait import until
from tidemill.errors import Exhausted, Internal, Invalid, NotFound, TidemillError, Unavailable


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "models")


@pytest.fixture
async def explicit(folder: Folder) -> AsyncIterator[tuple[Serving, Control]]:
    """A server that loads by request, and the requests."""
    async with serve_folder(folder.root, model_control="explicit") as serving:
        repository = Control(serving.app.address)
        yield serving, repository
        await repository.close()


async def test_loads_and_unloads_by_request(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_failed_reload_leaves_the_old_content(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_failed_new_version_leaves_the_old_one(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_broken_configuration_leaves_what_is_loaded(folder: Folder, explicit: tuple[Serving, Control]) -> None:
    serving, repository = explicit
    folder.version("m", 1, onnxmodels.scale(2), ONNX)
    await repository.load("m")
    folder.put("m", {"config.pbtxt": "nonsense {"})
    with pytest.raises(Internal, match="failed to load 'm', failed to poll from model repository"):
        await repository.load("m")
    assert await factor(serving, "m") == (2, "1")


async def test_unknown_models(explicit: tuple[Serving, Control]) -> None:
    _, repository = explicit
    with pytest.raises(Internal) as refused:
        await repository.load("nope")
    assert refused.value.message == "failed to load 'nope', failed to poll from model repository"
    with pytest.raises(NotFound):
        await repository.unload("nope")


TRAVERSAL = ["../m", "..", "m/..", "/m", "a/b", "m\\..", " ..", "", " ", "m\x00", "..%2f", "․․", "x" * 256, "m ", "~"]


@pytest.mark.parametrize("name", TRAVERSAL)
async def test_names_that_are_paths_are_refused(explicit: tuple[Serving, Control], name: str) -> None:
    serving, repository = explicit
    for call in (repository.load(name), repository.unload(name)):
        with pytest.raises(Invalid):
            await call
    assert await serving.client.live()


async def test_configuration_by_request(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_files_by_request(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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
async def test_paths_that_leave_are_refused(folder: Folder, explicit: tuple[Serving, Control], path: str) -> None:
    _, repository = explicit
    before = sorted(folder.root.rglob("*"))
    with pytest.raises(Invalid):
        await repository.load("m", JSON, {path: onnxmodels.scale(2)})
    assert sorted(folder.root.rglob("*")) == before


async def test_files_by_request_are_bounded(folder: Folder) -> None:
    async with serve_folder(folder.root, model_control="explicit", max_model_bytes=1000) as serving:
        repository = Control(serving.app.address)
        with pytest.raises(Exhausted):
            await repository.load("m", JSON, {"1/model.onnx": b"x" * 2000})
        await repository.close()


async def test_no_swap_above_the_memory_ceiling(folder: Folder) -> None:
    size = len(onnxmodels.scale(2))
    folder.version("m", 1, onnxmodels.scale(2))
    async with serve_folder(folder.root, model_control="explicit", max_model_memory=size * 3 // 2) as serving:
        repository = Control(serving.app.address)
        await repository.load("m")
        folder.version("m", 2, onnxmodels.scale(3))
        with pytest.raises(Internal, match="all models together may have"):
            await repository.load("m")
        assert await factor(serving, "m") == (2, "1")
        await repository.unload("m")
        await until(lambda: _loads(repository, "m"), what="there is room")
        assert await factor(serving, "m") == (3, "2")
        await repository.close()


async def _loads(repository: Control, model: str) -> bool:
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


async def test_one_version_at_a_time(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_many_load_and_unload_the_same_model(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_no_request_fails_while_versions_change(folder: Folder, explicit: tuple[Serving, Control]) -> None:
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


async def test_ensembles_come_and_go_with_what_they_are_made_of(
    folder: Folder, explicit: tuple[Serving, Control]
) -> None:
    serving, repository = explicit
    folder.version("double", 1, onnxmodels.scale(2))
    folder.version("triple", 1, onnxmodels.scale(3))
    folder.put("both", {"config.pbtxt": ensemble("double", "triple"), "1/.keep": b""})
    folder.put("inner", {"config.pbtxt": ensemble("double"), "1/.keep": b""})
    await repository.load("both")
    assert await serving.states() == {"both/1": "READY", "double/1": "READY", "triple/1": "READY", "inner/": ""}
    result = await serving.client.infer("both", {"t0": np.ones((1, 2), np.float32)})
    assert result.outputs["t2"].tolist() == [[6, 6]]
    await repository.load("inner")
    await repository.unload("both", dependents=True)
    assert not await serving.client.model_ready("triple")
    assert await serving.client.model_ready("double")  # another one is made of it
    await repository.unload("inner", dependents=True)
    assert not await serving.client.model_ready("double")
