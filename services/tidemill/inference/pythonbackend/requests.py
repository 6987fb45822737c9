"""Requests: those that a model gets, and those that it makes of other models."""

import asyncio
import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tidemill.errors import TidemillError
from tidemill.inference.isolation import faults
from tidemill.inference.isolation.channel import Message
from tidemill.inference.isolation.link import Link
from tidemill.inference.pythonbackend.constants import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
)
from tidemill.inference.pythonbackend.errors import TritonModelException, to_error
from tidemill.inference.pythonbackend.responses import InferenceResponse, InferenceResponseSender
from tidemill.inference.pythonbackend.tensors import Tensor, sendable
from tidemill.tensors.dtypes import DataType


class PreferredMemory:
    """Where a model would like to have outputs; here they are always in the memory of the CPU."""

    def __init__(self, preferred_memory: int = TRITONSERVER_MEMORY_CPU, preferred_device_id: int = 0) -> None:
        self.memory = preferred_memory
        self.device = preferred_device_id


class InferenceTrace:
    """Stands for the trace that a request belongs to, for requests that it leads to."""

    def __init__(self, ticket: int = 0) -> None:
        self.ticket = ticket


class InferenceRequest:
    """A request to run a model.

    Args:
        request_id: name of the request.
        correlation_id: of its sequence; 0 or "" = none.
        inputs: tensors.
        requested_output_names: which outputs are wanted; empty = all.
        model_name, model_version: what shall run; -1 = the version that serves.
        flags: sum of `TRITONSERVER_REQUEST_FLAG_...`.
        timeout: longest time in the queue, in microseconds; 0 = any.
        preferred_memory: has no effect.
        trace: of the request that this one is for; what comes of it shows there.
        parameters: names and booleans, numbers or strings.
    """

    link: ClassVar[Link]

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"inputs holds {type(tensor).__name__}, which is no Tensor")
        self._id = request_id
        self._correlation = correlation_id
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model = model_name
        self._version = model_version
        self._flags = flags
        self._timeout = timeout
        self._preferred = preferred_memory or PreferredMemory()
        self._trace = trace or InferenceTrace()
        self._parameters = dict(parameters or {})
        self._release = TRITONSERVER_REQUEST_RELEASE_ALL
        self.sender: InferenceResponseSender | None = None

    @classmethod
    def received(cls, message: Message, inputs: list[Tensor], sender: InferenceResponseSender) -> "InferenceRequest":
        """A request that came from the server."""
        request = cls(
            message["id"],
            message["correlation"],
            inputs,
            message["outputs"],
            message["model"],
            message["version"],
            message["flags"],
            message["timeout"],
            trace=InferenceTrace(message["ticket"]),
            parameters=message["parameters"],
        )
        request.sender = sender
        return request

    def inputs(self) -> list[Tensor]:
        """The tensors."""
        return self._inputs

    def request_id(self) -> str:
        """The name of the request."""
        return self._id

    def correlation_id(self) -> int | str:
        """The sequence that it belongs to."""
        return self._correlation

    def flags(self) -> int:
        """The sum of its flags."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Set the flags."""
        self._flags = flags

    def timeout(self) -> int:
        """Microseconds."""
        return self._timeout

    def model_name(self) -> str:
        """The model that shall run."""
        return self._model

    def preferred_memory(self) -> PreferredMemory:
        """Where outputs would be liked."""
        return self._preferred

    def trace(self) -> InferenceTrace:
        """The trace that it belongs to, for requests that it leads to."""
        return self._trace

    def requested_output_names(self) -> list[str]:
        """Which outputs are wanted."""
        return self._outputs

    def parameters(self) -> str:
        """The parameters, as a JSON text."""
        return json.dumps(self._parameters)

    def get_response_sender(self) -> InferenceResponseSender:
        """What sends answers to it. Raises TritonModelException when it is not a request that a model got."""
        if self.sender is None:
            raise TritonModelException("only a request that the model got has a response sender")
        return self.sender

    def is_cancelled(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self.sender is not None and self.sender.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        """Say what becomes of it after `execute`: done with, or brought again (`..._RELEASE_RESCHEDULE`)."""
        if flags not in (TRITONSERVER_REQUEST_RELEASE_ALL, TRITONSERVER_REQUEST_RELEASE_RESCHEDULE):
            raise TritonModelException(f"release flags are 1 (all) or 2 (reschedule), not {flags}")
        self._release = flags

    def rescheduled(self) -> bool:
        """Whether it is to be brought again; asking takes the wish back."""
        wish = self._release == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE
        self._release = TRITONSERVER_REQUEST_RELEASE_ALL
        return wish

    def exec(self, decoupled: bool = False) -> Any:
        """Have the model run, and wait.

        Args:
            decoupled: whether it may give any number of answers.

        Returns:
            The response, which may be an error; or, decoupled, an iterator over responses.

        Raises:
            TritonModelException: the request cannot be sent.
        """
        answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._inquire(answers.put, decoupled)
        if decoupled:
            return ResponseIterator(self.link, answers)
        return _response(self.link, answers.get())

    async def async_exec(self, decoupled: bool = False) -> Any:
        """Have the model run while other coroutines run; see `exec`."""
        loop = asyncio.get_running_loop()
        if decoupled:
            answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
            self._inquire(answers.put, decoupled)
            return ResponseIterator(self.link, answers)
        future: asyncio.Future[Message] = loop.create_future()

        def settle(message: Message) -> None:
            if not future.done():
                future.set_result(message)

        def answered(message: Message) -> None:
            loop.call_soon_threadsafe(settle, message)

        self._inquire(answered, decoupled)
        return _response(self.link, await future)

    def _inquire(self, answered: Any, decoupled: bool) -> None:
        if not self._model:
            raise TritonModelException("model_name says which model shall run")
        try:
            inputs = self.link.pack([sendable(tensor, None) for tensor in self._inputs])
        except TidemillError as error:
            raise TritonModelException(error.message) from error
        self.link.inquire(
            "bls",
            answered,
            model=self._model,
            version="" if self._version == -1 else str(self._version),
            inputs=inputs,
            outputs=self._outputs,
            request=self._id,
            correlation=self._correlation,
            flags=self._flags,
            timeout=self._timeout,
            trace=self._trace.ticket,
            parameters=self._parameters,
            decoupled=decoupled,
        )


class ResponseIterator:
    """The responses of a decoupled model, as they come. The last one may be empty."""

    def __init__(self, link: Link, answers: "queue.SimpleQueue[Message]") -> None:
        self._link = link
        self._answers = answers
        self._ended = False
        self._cancelled = False

    def __iter__(self) -> Iterator[InferenceResponse]:
        return self

    def __next__(self) -> InferenceResponse:
        while not self._ended:
            message = self._answers.get()
            self._ended = message["final"]
            if not message.get("empty"):
                return _response(self._link, message)
        raise StopIteration

    def cancel(self) -> None:
        """Wait for no more of them."""
        self._ended = True


def _response(link: Link, message: Message) -> InferenceResponse:
    fault: faults.Fault | None = message.get("error")
    if fault is not None:
        return InferenceResponse(error=to_error(fault))
    arrays = link.unpack(message["outputs"])
    tensors = [Tensor.typed(tensor[0], arrays[tensor[0]], DataType[tensor[1]]) for tensor in message["outputs"]]
    return InferenceResponse(tensors, parameters=message["parameters"])


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input of this name; None when there is none."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output of this name; None when there is none."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)
