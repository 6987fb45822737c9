"""Load that does not wait for answers: calls on a fixed schedule, every answer checked."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

OK, WRONG = "OK", "WRONG"
Check = Callable[[int, pb.ModelInferResponse], str]
"""What is wrong with the answer to a call, by its number; "" = nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended.

    Args:
        due: when it was to be made, by `time.monotonic()`.
        seconds: from then to its end.
        code: OK, WRONG, or the name of the status.
        details: what was wrong.
        version: of the model that answered.
    """

    due: float
    seconds: float
    code: str
    details: str = ""
    version: str = ""


@dataclass(slots=True)
class Outcomes:
    """How many calls ended."""

    all: list[Outcome] = field(default_factory=list)

    def between(self, begin: float, end: float) -> "Outcomes":
        """Of the calls that were due in this time."""
        return Outcomes([one for one in self.all if begin <= one.due < end])

    def only(self, *codes: str) -> "Outcomes":
        """Of the calls that ended so."""
        return Outcomes([one for one in self.all if one.code in codes])

    @property
    def failed(self) -> int:
        """How many did not give a right answer."""
        return sum(one.code != OK for one in self.all)

    def codes(self) -> dict[str, int]:
        """How many ended how."""
        return dict(Counter(one.code for one in self.all))

    def details(self) -> list[str]:
        """What was wrong, the most frequent first, a few of them."""
        found = Counter(f"{one.code}: {one.details}"[:300] for one in self.all if one.code != OK)
        return [f"{count} x {text}" for text, count in found.most_common(5)]

    def figures(self) -> dict[str, Any]:
        """How many, how they ended, and how long they took."""
        took = {f"p{100 * part:g} ms": round(self.quantile(part), 1) for part in (0.5, 0.99, 0.999)}
        return {"calls": len(self.all), "codes": self.codes(), **took, "failures": self.details()}

    def quantile(self, part: float) -> float:
        """Milliseconds in which such a part of the calls ended; NaN without any."""
        took = sorted(one.seconds for one in self.all)
        return 1000 * took[min(len(took) - 1, int(len(took) * part))] if took else math.nan


class Load:
    """Makes `rate` calls a second from when it is entered to when it is left, and then waits for their answers.

    Args:
        address: of the server.
        model: takes `x`, FP32 [1, 2], which holds the number of the call.
        check: judges an answer.
        rate: calls a second.
        timeout: of a call, in seconds.
        connections: over how many they go.
    """

    def __init__(
        self, address: str, model: str, check: Check, *, rate: float, timeout: float = 5.0, connections: int = 4
    ) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        options += [("grpc.max_reconnect_backoff_ms", 500)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
        self._calls = [pg.GRPCInferenceServiceStub(channel).ModelInfer for channel in self._channels]
        self._model, self._check, self._rate, self._timeout = model, check, rate, timeout
        self._running: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._more = asyncio.Event()
        self._schedule: asyncio.Task[None] | None = None
        self.outcomes = Outcomes()

    async def __aenter__(self) -> Self:
        self._schedule = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._schedule is not None:
            await self._schedule
        await asyncio.gather(*self._running)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def calls(self, count: int) -> None:
        """Return when so many more calls have ended."""
        wanted = len(self.outcomes.all) + count
        while len(self.outcomes.all) < wanted:
            self._more.clear()
            await self._more.wait()

    async def _run(self) -> None:
        begin, number = time.monotonic(), 0
        while not self._ended.is_set():
            due = begin + number / self._rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.ensure_future(self._call(number, due))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            number += 1
            if number % 64 == 0:  # behind the schedule: answers must come in nevertheless
                await asyncio.sleep(0)

    async def _call(self, number: int, due: float) -> None:
        code, details, version = OK, "", ""
        try:
            answer = await self._calls[number % len(self._calls)](
                request(self._model, number), timeout=self._timeout, wait_for_ready=False
            )
            version = answer.model_version
            if details := self._check(number, answer):
                code = WRONG
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
        self.outcomes.all.append(Outcome(due, time.monotonic() - due, code, details, version))
        self._more.set()


def request(model: str, number: int) -> pb.ModelInferRequest:
    """Call number so and so."""
    asked = pb.ModelInferRequest(model_name=model, id=str(number))
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    asked.raw_input_contents.append(np.array([[1, number % 4096 + 1]], np.float32).tobytes())
    return asked


def scaled(number: int, answer: pb.ModelInferResponse) -> str:
    """Judges a model whose version n multiplies by n."""
    found = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    version = float(answer.model_version)
    if answer.id != str(number):
        return f"the answer to {answer.id}"
    if found != [version, version * (number % 4096 + 1)]:
        return f"version {answer.model_version} answers {found}"
    return ""


async def answered(address: str, model: str, within: float = 60.0, *, again: bool = False) -> None:
    """Return when the model answers there; with `again`, ask on while it is unavailable."""
    async with grpc.aio.insecure_channel(address) as channel:
        ask: Callable[..., Awaitable[Any]] = pg.GRPCInferenceServiceStub(channel).ModelInfer

        async def answers() -> bool:
            try:
                await ask(request(model, 0), timeout=within, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if again and error.code() is grpc.StatusCode.UNAVAILABLE:
                    return False
                raise
            return True

        await until(answers, within, f"{model} answers")
