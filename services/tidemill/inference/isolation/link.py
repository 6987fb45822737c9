"""The server, as a model's process sees it."""

import mmap
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from tidemill.errors import Unavailable
from tidemill.inference.calls import Array
from tidemill.inference.isolation.channel import Channel, Message
from tidemill.inference.isolation.faults import Fault, from_fault
from tidemill.inference.isolation.memory import Packed, Shared
from tidemill.tensors.dtypes import DataType

_KEEP = 64 << 20


class Program(Protocol):
    """Runs a model in its process. All methods but `ready` are called on the main thread."""

    def execute(self, requests: Sequence[Message]) -> list[Message]:
        """Run a batch; replies to those of its requests that have not been replied to before."""

    def ready(self) -> bool:
        """Whether the model says that it can run; on any thread."""

    def close(self) -> None:
        """The model is unloaded."""


class Link:
    """Asks and tells the server. Safe to use from any thread, but for `serve`.

    Args:
        channel: to the server.
    """

    def __init__(self, channel: Channel) -> None:
        self.shared = Shared(self._grow)
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._channel = channel
        self._numbers = count(1)
        self._answers: dict[int, Callable[[Message], None]] = {}
        self._growing = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message, with word of all regions that are not needed any more."""
        if places := self.shared.drain():
            message["free"] = places
        self._channel.send(message)

    def tell(self, what: str, **body: Any) -> None:
        """Tell the server something."""
        self.send({"op": "tell", "what": what, **body})

    def ask(self, what: str, **body: Any) -> Message:
        """The server's one answer.

        Raises:
            TidemillError: it says no.
        """
        answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.inquire(what, answers.put, **body)
        answer = answers.get()
        if (fault := answer.get("error")) is not None:
            raise from_fault(fault)
        return answer

    def inquire(self, what: str, answered: Callable[[Message], None], **body: Any) -> None:
        """Ask; every answer goes to `answered`, on the thread that reads, until one is `final`."""
        number = next(self._numbers)
        self._answers[number] = answered
        self.send({"op": "ask", "what": what, "id": number, **body})

    def pack(self, tensors: Sequence[tuple[str, DataType, Sequence[Array]]]) -> list[Packed]:
        """Tensors in shared memory. Raises TidemillError."""
        return self.shared.pack(tensors)

    def unpack(self, tensors: Sequence[Packed], *, copy: bool = False) -> dict[str, Array]:
        """Arrays by name."""
        return {tensor[0]: self.shared.unpack(tensor, copy=copy) for tensor in tensors}

    def serve(self, execute: Callable[[Sequence[Message]], None], ready: Callable[[], bool]) -> None:
        """Take messages until the server is gone; what shall run goes to `jobs`, for the main thread."""
        while (message := self._channel.receive()) is not None:
            self.shared.mine.give_back(message.get("free", ()))
            operation = message["op"]
            if operation == "execute":
                requests = message["requests"]
                del message
                self.jobs.put(lambda requests=requests: execute(requests))  # type: ignore[misc]
            elif operation == "answer":
                self._answer(message)
            elif operation == "segment":
                self.shared.attach(message["segment"], self._map(message["size"]))
            elif operation == "drop":
                self.shared.detach(message["segment"])
            elif operation == "flush":
                self.send({"op": "flushed"})
            elif operation == "ready":
                threading.Thread(target=self._say_ready, args=(message["id"], ready), daemon=True).start()
            for number in self.shared.mine.shed(_KEEP):
                self.send({"op": "drop", "segment": number})

    def _say_ready(self, number: int, ready: Callable[[], bool]) -> None:
        self.tell("ready", id=number, ready=ready())

    def _answer(self, message: Message) -> None:
        number = message["id"]
        if "segment" in message:  # its descriptor comes with the message: it is taken on this thread
            self.shared.mine.add(message["segment"], self._map(message["size"]))
        final = message.get("final", True)
        answered = self._answers.pop(number, None) if final else self._answers.get(number)
        if answered is not None:
            answered(message)

    def _grow(self, size: int) -> None:
        with self._growing:
            if (place := self.shared.mine.take(size)) is not None:  # another thread has made room
                self.shared.mine.give_back([place])
                return
            self.ask("grow", size=size)

    def _map(self, size: int) -> mmap.mmap:
        descriptor = self._channel.descriptor()
        try:
            return mmap.mmap(descriptor, size)
        except OSError as error:
            raise Unavailable("the server's memory cannot be mapped") from error
        finally:
            os.close(descriptor)


def failed(ticket: int, fault: Fault) -> Mapping[str, Any]:
    """The last reply to a request that failed."""
    return {"ticket": ticket, "error": fault, "final": True}
