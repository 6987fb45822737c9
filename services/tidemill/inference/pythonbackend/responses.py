"""What a model answers, at once or bit by bit."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.inference.isolation.channel import ChannelClosed, Message
from tidemill.inference.isolation.link import Link
from tidemill.inference.pythonbackend.constants import TRITONSERVER_RESPONSE_COMPLETE_FINAL
from tidemill.inference.pythonbackend.errors import TritonError, TritonModelException, to_fault
from tidemill.inference.pythonbackend.tensors import Tensor, sendable
from tidemill.tensors.dtypes import DataType


class InferenceResponse:
    """One answer.

    Args:
        output_tensors: outputs; those that nobody has asked for are left out on the way.
        error: in place of outputs.
        parameters: of the answer: names and booleans, numbers or strings.
    """

    def __init__(
        self,
        output_tensors: Sequence[Tensor] | None = None,
        error: TritonError | str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        for tensor in output_tensors or ():
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"output_tensors holds {type(tensor).__name__}, which is no Tensor")
        self._tensors = list(output_tensors or ())
        self._error = TritonError(error) if isinstance(error, str) else error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        """The outputs."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error; None when it is none."""
        return self._error

    def parameters(self) -> str:
        """The parameters, as a JSON text."""
        return json.dumps(self._parameters)

    def values(self) -> Mapping[str, Any]:
        """The parameters."""
        return self._parameters


def packed(
    link: Link, ticket: int, response: InferenceResponse, wanted: Sequence[str], declared: Mapping[str, DataType]
) -> Message:
    """A response as a message; it is the last one, unless that is changed.

    Raises:
        TritonModelException: an output is not what the configuration declares.
        TidemillError: there is no room for it.
    """
    error = response.error()
    if error is not None:
        return {"ticket": ticket, "error": to_fault(error), "final": True}
    tensors = [tensor for tensor in response.output_tensors() if tensor.name() in wanted]
    outputs = link.pack([sendable(tensor, declared.get(tensor.name())) for tensor in tensors])
    return {"ticket": ticket, "outputs": outputs, "parameters": response.values(), "final": True}


class InferenceResponseSender:
    """Sends the answers to one request, from any thread, also after `execute` has returned."""

    def __init__(self, link: Link, ticket: int, wanted: Sequence[str], declared: Mapping[str, DataType]) -> None:
        self._link = link
        self.ticket = ticket
        self._wanted = wanted
        self._declared = declared
        self._lock = threading.Lock()
        self.closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send an answer, or with the flag `TRITONSERVER_RESPONSE_COMPLETE_FINAL` the last one, which may be empty.

        Raises:
            TritonModelException: the last one was sent before, or there is nothing to send.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(
                f"flags of a response are 0 or TRITONSERVER_RESPONSE_COMPLETE_FINAL (1), not {flags}"
            )
        if response is None and not flags:
            raise TritonModelException("a response must be given, unless flags say that there are no more")
        with self._lock:
            if self.closed:
                raise TritonModelException("the response sender is closed: the last response was sent before")
            message: Message = {"ticket": self.ticket, "empty": True}
            if response is not None:
                message = packed(self._link, self.ticket, response, self._wanted, self._declared)
            message["final"] = self.closed = bool(flags)
            try:
                self._link.send({"op": "replies", "replies": [message]})
            except ChannelClosed as error:
                raise TritonModelException("the server is gone") from error

    def close(self) -> bool:
        """Take no more answers; False when the last one was sent before."""
        with self._lock:
            was, self.closed = self.closed, True
        return not was

    def is_cancelled(self) -> bool:
        """Whether nobody waits for answers any more."""
        return not self._link.ask("alive", ticket=self.ticket)["alive"]
