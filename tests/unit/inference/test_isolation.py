"""Models in processes of their own: crashes, memory, bounds."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnxmodels
from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill.errors import Exhausted, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call
from tidemill.inference.configuration import Configuration, SequenceBatching, SequenceState, Step
from tidemill.inference.isolation import settings as transfer
from tidemill.inference.isolation.isolated import IsolatedRuntime
from tidemill.inference.isolation.output import BURST, Allowance
from tidemill.inference.isolation.restarts import Limits, Restarts
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.runtimes.onnx import OnnxRuntime
from tidemill.tensors.dtypes import DataType

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
LIMITS = Limits(first=0.01, longest=0.05, grace=5)
Load = Callable[..., IsolatedRuntime]


@pytest.fixture
def load() -> Iterator[Load]:
    loaded: list[IsolatedRuntime] = []

    def start(instances: int = 1, data: bytes | None = None, limits: Limits = LIMITS) -> IsolatedRuntime:
        configuration = Configuration(name="m", backend="onnx", instances=instances)
        files = {"model.onnx": onnxmodels.scale(2) if data is None else data}
        loaded.append(IsolatedRuntime(OnnxRuntime, files, Settings(configuration=configuration), limits=limits))
        return loaded[-1]

    yield start
    for runtime in loaded:
        runtime.close()


def call(rows: int, value: float = 1.0) -> Call:
    return Call(inputs={"x": np.full((rows, 2), value, np.float32)}, outputs=["y"], rows=rows)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_runs_elsewhere_as_here(load: Load) -> None:
    runtime = load()
    assert runtime.pool.pids != [os.getpid()]
    assert os.getsid(runtime.pool.pids[0]) == runtime.pool.pids[0]  # no Ctrl-C for the server reaches it
    np.testing.assert_array_equal(runtime.run({"x": X}, ["y"])[0], 2 * X)
    assert (runtime.platform, runtime.devices) == ("onnxruntime_onnx", ("CPUExecutionProvider",))
    with pytest.raises(Invalid, match="not an ONNX model"):
        load(data=b"nonsense")


def test_each_caller_of_a_batch_gets_its_rows(load: Load) -> None:
    replies, times = load().execute([call(1, 1.0), call(3, 2.0), call(2, 3.0)])
    assert times is not None
    for reply, (rows, value) in zip(replies, [(1, 2.0), (3, 4.0), (2, 6.0)], strict=True):
        assert isinstance(reply, Answer)
        np.testing.assert_array_equal(reply.outputs["y"], np.full((rows, 2), value))


def named_memory(*pids: int) -> list[str]:
    """What processes have open in shared memory that has a name, and so could be left behind."""
    opened = [os.path.realpath(entry) for pid in pids for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [target for target in opened if target.startswith("/dev/shm/")]


async def test_a_killed_process_costs_its_own_calls_only(load: Load) -> None:
    runtime = load(instances=2)
    other = load()
    victim, survivor = runtime.pool.pids
    stop = threading.Event()
    errors: list[TidemillError] = []
    right = wrong = 0

    def work(number: int) -> None:
        nonlocal right, wrong
        while not stop.is_set():
            (reply,), _ = runtime.execute([call(2, number)])
            if isinstance(reply, TidemillError):
                errors.append(reply)
            elif (reply.outputs["y"] == 2 * number).all():
                right += 1
            else:
                wrong += 1

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        await until(lambda: right > 20)
        os.kill(victim, signal.SIGKILL)
        np.testing.assert_array_equal(other.run({"x": X}, ["y"])[0], 2 * X)
        await until(lambda: len(runtime.pool.pids) == 2 and victim not in runtime.pool.pids)
        enough = right + 20
        await until(lambda: right > enough)
        stop.set()
        for worker in workers:
            worker.result(20)
    assert wrong == 0
    assert len(errors) <= 1  # the one call that was in it
    assert all(error.reason == "MODEL_CRASHED" for error in errors)
    assert survivor in runtime.pool.pids
    assert not named_memory(os.getpid(), survivor)


async def test_while_it_is_down_callers_are_told_when_to_come_back(load: Load) -> None:
    runtime = load(limits=Limits(first=60, grace=5))
    os.kill(runtime.pool.pids[0], signal.SIGKILL)
    await until(lambda: not runtime.ready)
    with pytest.raises(Unavailable) as refused:
        runtime.run({"x": X}, ["y"])
    assert refused.value.reason == "MODEL_RESTARTING"
    assert refused.value.retry_after is not None
    assert 50 < refused.value.retry_after <= 60


async def test_it_ends_with_the_server(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnxmodels.scale(2))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tidemill.inference.isolation.isolated import IsolatedRuntime\n"
        "from tidemill.inference.runtimes.base import Settings\n"
        "from tidemill.inference.runtimes.onnx import OnnxRuntime\n"
        "files = {'model.onnx': Path(sys.argv[1]).read_bytes()}\n"
        "runtime = IsolatedRuntime(OnnxRuntime, files, Settings())\n"
        "print(runtime.pool.pids[0], flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model.onnx")]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    pid = int(await server.stdout.readline())
    assert not gone(pid)
    server.kill()
    await until(lambda: gone(pid))
    await server.wait()


def test_unloading_gives_all_memory_back(load: Load) -> None:
    weights = 200 << 20
    data = onnxmodels.heavy(weights)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def once() -> list[int]:
        runtime = load(data=data)
        runtime.run({"x": np.ones((1, 2), np.float32)}, ["y"])
        pids = runtime.pool.pids
        runtime.close()
        return pids

    once()  # what the first one imports stays
    before = resident()
    pids = once()
    assert resident() - before < weights // 20
    assert all(map(gone, pids))


def test_shared_memory_is_bounded_and_comes_back(load: Load) -> None:
    runtime = load(limits=Limits(memory=16 << 20, grace=5))
    rows = (3 << 20) // 8
    for _ in range(20):  # far more than the bound together
        (y,) = runtime.run({"x": np.ones((rows, 2), np.float32)}, ["y"])
        assert y.shape == (rows, 2)
    assert runtime.pool.shared_bytes <= 16 << 20
    with pytest.raises(Exhausted):
        runtime.run({"x": np.ones((8 * rows, 2), np.float32)}, ["y"])
    np.testing.assert_array_equal(runtime.run({"x": X}, ["y"])[0], 2 * X)


def test_pauses_before_restarts_grow_until_it_has_run_for_a_while() -> None:
    clock = ManualClock()
    restarts = Restarts(Limits(first=1, longest=5, settled=60), clock)
    assert [restarts.crashed() for _ in range(4)] == [1, 2, 4, 5]
    assert restarts.left == 5
    restarts.up()
    clock.jump(59)
    assert restarts.crashed() == 5
    restarts.up()
    clock.jump(60)
    assert restarts.crashed() == 1


def test_settings_reach_the_process_whole() -> None:
    configuration = Configuration(
        name="m",
        backend="onnx",
        steps=(Step(model="a", inputs={"x": "y"}),),
        sequence=SequenceBatching(
            states=(SequenceState(input="i", output="o", datatype=DataType.FP32, dims=(2,), initial=b"\0\1"),)
        ),
        providers=(("CPUExecutionProvider", {"a": "b"}),),
        tracked=b"\xff\0",
    )
    settings = Settings(configuration=configuration, directory=Path("m/1"), gpus=(1, 2), invoke=lambda *_: None)
    back = transfer.from_text(transfer.to_text(settings))
    assert (back.configuration, back.directory, back.gpus, back.invoke) == (configuration, Path("m/1"), (1, 2), None)


def test_what_a_model_prints_is_bounded() -> None:
    clock = ManualClock()
    allowance = Allowance("m", clock.monotonic)
    assert sum(allowance.take() for _ in range(3 * BURST)) == BURST
    clock.jump(1)
    assert sum(allowance.take() for _ in range(3 * BURST)) == 100


def test_a_call_without_time_is_not_waited_for(load: Load) -> None:
    runtime = load()
    os.kill(runtime.pool.pids[0], signal.SIGSTOP)
    try:
        late = call(1)
        late.expires = time.monotonic() + 0.05
        (reply,), _ = runtime.execute([late])
        assert isinstance(reply, TidemillError)
        assert reply.reason == "EXPIRED"
    finally:
        os.kill(runtime.pool.pids[0], signal.SIGCONT)
