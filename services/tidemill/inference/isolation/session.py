"""One life of a model's process, as the server sees it."""

import logging
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from tidemill.errors import Exhausted, Internal, TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.isolation import memory
from tidemill.inference.isolation.channel import ChannelClosed, Message
from tidemill.inference.isolation.faults import from_fault, to_fault
from tidemill.inference.isolation.memory import Packed, Shared
from tidemill.inference.isolation.process import Process
from tidemill.tensors.dtypes import DataType

LOG = logging.getLogger(__name__)
FIRST_STEP, LARGEST_STEP = 1 << 20, 64 << 20
"""Bytes by which shared memory grows: as much as there is already, between these two, and what a tensor needs."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request to the model in the process.

    Args:
        tensors: (name, datatype, parts) of its inputs; parts are put together along the first dimension.
        outputs: names of outputs.
        header: what else the program in the process needs.
        receive: takes the replies, on the thread that serves the process; arrays are copies.
        call: for which it is made; None when it stands for several.
    """

    tensors: Sequence[tuple[str, DataType, Sequence[Array]]]
    outputs: Sequence[str]
    header: Mapping[str, Any] = field(default_factory=dict)
    receive: Receive
    call: Call | None = None


class Desk(Protocol):
    """Answers what a process asks for while it runs a model."""

    def ask(self, session: "Session", message: Message) -> None:
        """Answer a question by `session.answer`, now or later; must not block."""

    def tell(self, session: "Session", message: Message) -> None:
        """Take a note of something."""

    def ended(self, session: "Session") -> None:
        """The process is gone."""


class Session:
    """A connection to a process that lives.

    Args:
        process: just started.
        limit: most bytes of shared memory.
        desk: answers its questions.
        done: called when the process can take the next job, with the nanoseconds that the last one ran.
    """

    def __init__(self, process: Process, limit: int, desk: Desk, done: Callable[[int], None]) -> None:
        self.process = process
        self.shared = Shared(self._grow)
        self.loaded: Message | None = None
        self.failure: TidemillError | None = None
        self._limit = limit
        self._desk = desk
        self._done = done
        self._lock = threading.Lock()
        self._bytes: dict[int, int] = {}
        self._numbers = count(1)
        self._tickets: dict[int, Request] = {}
        self._closed = False

    @property
    def bytes(self) -> int:
        """Shared memory of both directions."""
        with self._lock:
            return sum(self._bytes.values())

    def load(self, program: str, payload: Mapping[str, Any], files: int, entries: Sequence[Any]) -> None:
        """Have the process load a model. Raises ChannelClosed."""
        message = {"op": "load", "program": program, "payload": payload, "files": entries}
        self.send(message, (files,))

    def begin(self, requests: Sequence[Request]) -> list[int]:
        """Have the process run these as one batch; the tickets that stand for them.

        Raises:
            Exhausted: their inputs find no room.
            Invalid: an input cannot be written.
            ChannelClosed: the process is gone; nobody was told anything.
        """
        packed: list[list[Packed]] = []
        try:
            for request in requests:
                packed.append(self.shared.pack(request.tensors))
            with self._lock:
                if self._closed:
                    raise ChannelClosed
                tickets = [next(self._numbers) for _ in requests]
                self._tickets |= zip(tickets, requests, strict=True)
            body = [
                {"ticket": ticket, "inputs": inputs, "outputs": list(request.outputs), **request.header}
                for ticket, inputs, request in zip(tickets, packed, requests, strict=True)
            ]
        except BaseException:
            self.shared.mine.give_back(place for inputs in packed for place in Shared.places(inputs))
            raise
        try:
            self.send({"op": "execute", "requests": body})
        except ChannelClosed:
            with self._lock:
                mine = [ticket for ticket in tickets if self._tickets.pop(ticket, None) is not None]
            if mine:
                raise
        return tickets

    def call(self, ticket: int) -> Call | None:
        """For which call a ticket stands; None when it has had its last reply."""
        request = self._tickets.get(ticket)
        return None if request is None else request.call

    def answer(self, question: int, body: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Answer a question of the process. Raises ChannelClosed."""
        self.send({"op": "answer", "id": question, **body}, descriptors)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, with word of all regions that are not needed any more. Raises ChannelClosed."""
        if places := self.shared.drain():
            message["free"] = places
        self.process.channel.send(message, descriptors)

    def serve(self, left: Callable[[], float], loaded: Callable[[], None]) -> None:
        """Take messages until the process is gone; the thread that has started it does this.

        Args:
            left: seconds that loading may still take.
            loaded: called when it has loaded.
        """
        channel = self.process.channel
        while True:
            try:
                message = channel.receive(None if self.loaded else left(), self.process.gone)
                if message is None:
                    return
                self.shared.mine.give_back(message.get("free", ()))
                if message["op"] == "loaded":
                    self.loaded = message["body"]
                    loaded()
                    continue
                self._take(message)
            except TimeoutError:
                LOG.error("a model's process did not load in time", extra={"pid": self.process.pid})
                return
            except ChannelClosed:
                return
            except (KeyError, ValueError, TypeError, OSError) as error:
                LOG.error("a model's process speaks nonsense", extra={"pid": self.process.pid, "error": repr(error)})
                return

    def end(self, error: TidemillError) -> None:
        """The process is gone: nobody waits for it any more, and its memory is free."""
        with self._lock:
            self._closed = True
            left = list(self._tickets.values())
            self._tickets.clear()
            self._bytes.clear()
        self._desk.ended(self)
        for request in left:
            request.receive(error, True)

    def _take(self, message: Message) -> None:
        operation = message["op"]
        if operation == "replies":
            for reply in message["replies"]:
                self._reply(reply)
            if (took := message.get("took")) is not None:
                self._done(took)
        elif operation == "ask":
            if message["what"] == "grow":
                self._grow_theirs(message["id"], message["size"])
            else:
                self._desk.ask(self, message)
        elif operation == "tell":
            self._desk.tell(self, message)
        elif operation == "failed":
            self.failure = from_fault(message["error"])
        elif operation == "drop":
            self.shared.detach(message["segment"])
            with self._lock:
                del self._bytes[message["segment"]]
        self._shed()

    def _reply(self, reply: Message) -> None:
        final = reply["final"]
        outputs = {tensor[0]: self.shared.unpack(tensor, copy=True) for tensor in reply.get("outputs", ())}
        with self._lock:
            request = self._tickets.pop(reply["ticket"], None) if final else self._tickets.get(reply["ticket"])
        if request is None:
            return
        if (fault := reply.get("error")) is not None:
            request.receive(from_fault(fault), final)
        elif reply.get("empty"):
            request.receive(None, final)
        else:
            wanted = {name: outputs[name] for name in request.outputs if name in outputs}
            request.receive(Answer(outputs=wanted, parameters=reply.get("parameters", {})), final)

    def _grow(self, size: int) -> None:
        try:
            number, descriptor, mapped = self._segment(size)
        except Exhausted:
            self.send({"op": "flush"})
            raise
        try:
            self.send({"op": "segment", "segment": number, "size": len(mapped)}, (descriptor,))
        finally:
            os.close(descriptor)
        self.shared.mine.add(number, mapped)

    def _grow_theirs(self, question: int, size: int) -> None:
        try:
            number, descriptor, mapped = self._segment(size)
        except TidemillError as error:
            self.answer(question, {"error": to_fault(error)})
            return
        self.shared.attach(number, mapped)
        try:
            self.answer(question, {"segment": number, "size": len(mapped)}, (descriptor,))
        finally:
            os.close(descriptor)

    def _segment(self, size: int) -> tuple[int, int, mmap.mmap]:
        """The number, descriptor and bytes of a new segment with room for `size`."""
        with self._lock:
            used = sum(self._bytes.values())
            step = min(max(used, FIRST_STEP), LARGEST_STEP, self._limit - used)
            wanted = memory.round_up(max(size, step))
            if used + wanted > self._limit:
                wanted = memory.round_up(size)
            if used + wanted > self._limit:
                raise Exhausted(
                    f"the tensors of this model's process need more than its {self._limit} bytes of shared memory",
                    reason="SHARED_MEMORY_FULL",
                    retry_after=0.2,
                )
            number = next(self._numbers)
            self._bytes[number] = wanted
        try:
            descriptor = memory.create(wanted)
            return number, descriptor, mmap.mmap(descriptor, wanted)
        except OSError as error:
            with self._lock:
                self._bytes.pop(number, None)
            raise Internal("there is no shared memory", reason="NO_SHARED_MEMORY") from error

    def _shed(self) -> None:
        for number in self.shared.mine.shed(LARGEST_STEP):
            with self._lock:
                self._bytes.pop(number, None)
            self.send({"op": "drop", "segment": number})
