"""The program that runs a `TritonPythonModel` in its process."""

import asyncio
import inspect
import json
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tidemill.errors import Internal, Invalid, TidemillError
from tidemill.inference.isolation import faults
from tidemill.inference.isolation.channel import ChannelClosed, Message
from tidemill.inference.isolation.child import described
from tidemill.inference.isolation.link import Link
from tidemill.inference.pythonbackend import module as utils
from tidemill.inference.pythonbackend.configs import ModelConfig
from tidemill.inference.pythonbackend.errors import TritonModelException
from tidemill.inference.pythonbackend.modelconfig import datatype
from tidemill.inference.pythonbackend.requests import InferenceRequest
from tidemill.inference.pythonbackend.responses import InferenceResponse, InferenceResponseSender, packed
from tidemill.inference.pythonbackend.tensors import Tensor
from tidemill.tensors.dtypes import DataType


def load(link: Link, payload: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple["PythonProgram", Any]:
    """The program with its model initialized, and the completed configuration. What a model raises is raised."""
    directory = Path(payload["directory"])
    sys.modules[utils.NAME] = utils.make(link, directory)
    ((path, source),) = files.items()
    model = _import(directory, path, source)
    config = json.dumps(payload["config"])
    if hasattr(model, "auto_complete_config"):
        given = model.auto_complete_config(ModelConfig(config))
        if not isinstance(given, ModelConfig):
            raise Invalid(
                f"auto_complete_config must return the configuration that it got, not {type(given).__name__}",
                reason="MODEL_REFUSED",
            )
        config = json.dumps(given.as_dict())
    instance = model()
    if hasattr(instance, "initialize"):
        instance.initialize({**payload["args"], "model_config": config})
    return PythonProgram(link, instance, json.loads(config), payload["args"]), {"config": json.loads(config)}


class PythonProgram:
    """Runs the model, one batch at a time.

    Args:
        link: to the server.
        model: an instance of the model's class.
        config: its configuration.
        args: what it was initialized with.
    """

    def __init__(self, link: Link, model: Any, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        self._link = link
        self._model = model
        self._args = args
        self._declared: dict[str, DataType] = {
            tensor["name"]: datatype(tensor["data_type"]) for tensor in config.get("output", ())
        }
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        self._loop: asyncio.AbstractEventLoop | None = None

    def execute(self, requests: Sequence[Message]) -> list[Message]:
        """Run a batch; replies to those requests that the model has answered by returning."""
        return self._run([self._received(message) for message in requests])

    def ready(self) -> bool:
        """What the model says of itself."""
        return bool(self._model.is_ready()) if hasattr(self._model, "is_ready") else True

    def close(self) -> None:
        """Finalize the model."""
        if hasattr(self._model, "finalize"):
            self._model.finalize()

    def _received(self, message: Message) -> InferenceRequest:
        arrays = self._link.unpack(message["inputs"])
        inputs = [Tensor.typed(tensor[0], arrays[tensor[0]], DataType[tensor[1]]) for tensor in message["inputs"]]
        sender = InferenceResponseSender(self._link, message["ticket"], message["outputs"], self._declared)
        header = {"model": self._args["model_name"], "version": int(self._args["model_version"] or -1)}
        return InferenceRequest.received({**message, **header}, inputs, sender)

    def _run(self, requests: list[InferenceRequest]) -> list[Message]:
        try:
            found = self._model.execute(requests)
            if not inspect.isawaitable(found):
                return self._replies(requests, found)
            running = asyncio.run_coroutine_threadsafe(self._later(requests, found), self._running_loop())
            return [] if self._decoupled else running.result()
        except Exception as error:  # noqa: BLE001  # code of others: it is printed, and told to who called it
            return self._failed(requests, error)

    async def _later(self, requests: list[InferenceRequest], found: Any) -> list[Message]:
        """What a coroutine of the model replies; of a decoupled model nobody waits for it."""
        try:
            replies = self._replies(requests, await found)
        except Exception as error:  # noqa: BLE001  # the same
            replies = self._failed(requests, error)
        if self._decoupled and replies:
            self._link.send({"op": "replies", "replies": replies})
            return []
        return replies

    def _replies(self, requests: list[InferenceRequest], found: Any) -> list[Message]:
        again = {id(request) for request in requests if request.rescheduled()}
        if again:
            waiting = [request for request in requests if id(request) in again]
            self._link.jobs.put(lambda: self._again(waiting))
        if self._decoupled:
            if found is not None:
                raise TritonModelException("execute of a decoupled model must return None: responses are sent")
            return []
        open_ = [request for request in requests if id(request) not in again and not _sender(request).closed]
        if found is None and not open_:
            return []
        if not isinstance(found, list | tuple):
            raise TritonModelException(
                f"execute must return a list with one InferenceResponse for each request, not {type(found).__name__}"
            )
        if len(found) != len(requests):
            raise TritonModelException(
                f"execute has returned {len(found)} responses to {len(requests)} requests; there must be one for each"
            )
        return [
            self._reply(request, response)
            for request, response in zip(requests, found, strict=True)
            if any(request is each for each in open_)
        ]

    def _reply(self, request: InferenceRequest, response: Any) -> Message:
        sender = _sender(request)
        sender.close()
        try:
            if not isinstance(response, InferenceResponse):
                raise TritonModelException(
                    f"execute has returned {type(response).__name__} where an InferenceResponse must be"
                )
            wanted = request.requested_output_names()
            given = {tensor.name() for tensor in response.output_tensors()}
            if not response.has_error() and (missing := [name for name in wanted if name not in given]):
                raise TritonModelException(f"the response has no output '{missing[0]}'")
            return packed(self._link, sender.ticket, response, wanted, self._declared)
        except (TidemillError, TritonModelException) as error:
            return self._fault(sender.ticket, error)

    def _again(self, requests: list[InferenceRequest]) -> None:
        if replies := self._run(requests):
            self._link.send({"op": "replies", "replies": replies})

    def _failed(self, requests: Sequence[InferenceRequest], error: Exception) -> list[Message]:
        """What those requests are told that have not had their last response."""
        if not isinstance(error, TritonModelException | ChannelClosed):
            traceback.print_exception(error)
        return [self._fault(sender.ticket, error) for sender in map(_sender, requests) if sender.close()]

    def _fault(self, ticket: int, error: Exception) -> Message:
        if isinstance(error, TidemillError):
            return {"ticket": ticket, "error": faults.to_fault(error), "final": True}
        instance = self._args["model_instance_name"]
        text = f"Failed to process the request(s) for model instance '{instance}', message: {described(error)[:300]}"
        return {"ticket": ticket, "error": faults.to_fault(Internal(text, reason="MODEL_EXCEPTION")), "final": True}

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="coroutines", daemon=True).start()
        return self._loop


def _sender(request: InferenceRequest) -> InferenceResponseSender:
    return request.get_response_sender()


def _import(directory: Path, path: str, source: bytes) -> Any:
    """The model's class. Its module is `<version>.model`, so that it can import its neighbours relatively too."""
    sys.path += [str(directory), str(directory.parent)]
    package = ModuleType(directory.name if directory.name.isdigit() else "version")
    package.__path__ = [str(directory)]
    module = ModuleType(f"{package.__name__}.{Path(path).stem}")
    module.__file__, module.__package__ = str(directory / path), package.__name__
    sys.modules[package.__name__], sys.modules[module.__name__] = package, module
    exec(compile(source, module.__file__, "exec"), vars(module))  # noqa: S102  # the model of the operator
    model = getattr(module, "TritonPythonModel", None)
    if model is None:
        raise Invalid(f"{path} defines no class TritonPythonModel", reason="MODEL_REFUSED")
    if not callable(getattr(model, "execute", None)):
        raise Invalid("TritonPythonModel has no method execute", reason="MODEL_REFUSED")
    return model
