"""How models call other models of the same server."""

from dataclasses import replace

import numpy as np

from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.engine import Engine
from tidemill.inference.inputs import InputTensor, bind, rows_of, wanted
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Repository
from tidemill.tensors import dtypes
from tidemill.tensors.dtypes import DataType


class Invoker:
    """Has other models run, with the checks that every caller gets.

    Args:
        repository: of the models.
        engine: runs the calls.
    """

    def __init__(self, repository: Repository, engine: Engine) -> None:
        self._repository = repository
        self._engine = engine

    def __call__(self, model: str, version: str, call: Call, receive: Receive) -> None:
        """Run `call` on a model; see `Scheduler.submit`."""
        try:
            loaded = self._repository.acquire(model, version)
        except TidemillError as error:
            receive(error, True)
            return
        try:
            checked = _checked(call, loaded, model)
        except TidemillError as error:
            loaded.__exit__(None, None, None)
            receive(error, True)
            return

        def passed(reply: Answer | TidemillError | None, final: bool) -> None:
            try:
                receive(reply, final)
            finally:
                if final:
                    loaded.__exit__(None, None, None)

        self._engine.stream(loaded, checked, passed)


def _checked(call: Call, loaded: Loaded, model: str) -> Call:
    """The call as the model takes it. Raises Invalid."""
    tensors = []
    for name, array in call.inputs.items():
        spec = loaded.signature.input.get(name)
        kind = dtypes.of(array)
        if spec is not None and spec.datatype is DataType.BF16 and kind is DataType.FP32:
            kind = DataType.BF16
        tensors.append(InputTensor(name, kind.name, array.shape, np.ascontiguousarray(array).reshape(-1)))
    inputs = bind(tensors, loaded.signature, model, loaded.configuration.required)
    return replace(
        call,
        inputs=inputs,
        outputs=wanted(list(call.outputs), loaded.signature, model),
        rows=rows_of(inputs, loaded.configuration.max_batch, model),
    )
