"""The program that runs any runtime in a process of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from tidemill import plugins
from tidemill.inference import runtimes
from tidemill.inference.isolation import settings
from tidemill.inference.isolation.channel import Message
from tidemill.inference.isolation.link import Link
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.signatures import TensorSpec


def load(link: Link, payload: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple["TensorProgram", Any]:
    """The program with its model loaded, and what the model takes and gives. Raises TidemillError."""
    kind = plugins.load(runtimes, payload["runtime"], Runtime)
    runtime = kind.load(files, settings.from_text(payload["settings"]))
    signature = runtime.signature
    body = {
        "inputs": list(map(_spec, signature.inputs)),
        "outputs": list(map(_spec, signature.outputs)),
        "devices": list(runtime.devices),
    }
    return TensorProgram(link, runtime), body


class TensorProgram:
    """Runs a runtime, one request at a time."""

    def __init__(self, link: Link, runtime: Runtime) -> None:
        self._link = link
        self._runtime = runtime

    def execute(self, requests: Sequence[Message]) -> list[Message]:
        """Run the request. Raises TidemillError."""
        (request,) = requests
        names = request["outputs"]
        found = self._runtime.run(self._link.unpack(request["inputs"]), names)
        specs = self._runtime.signature.output
        outputs = self._link.pack(
            [(name, specs[name].datatype, (array,)) for name, array in zip(names, found, strict=True)]
        )
        return [{"ticket": request["ticket"], "outputs": outputs, "final": True}]

    def ready(self) -> bool:
        """As long as it lives."""
        return True

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()


def _spec(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.datatype.name, list(spec.shape)]
