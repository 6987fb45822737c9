"""Which runtime a configuration asks for, or its files need."""

from collections.abc import Collection
from dataclasses import dataclass

from tidemill import plugins
from tidemill.errors import Invalid
from tidemill.inference import runtimes

ENSEMBLE = "ensemble"
PYTHON = "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One kind of model.

    Args:
        runtime: name of the runtime here.
        backend: name of the runtime in configurations.
        platform: the older name in configurations; "" when there is none.
        filename: of the model, unless the configuration says another.
        code: whether the files are programs, or may hold some: they must come from somebody who is trusted.
    """

    runtime: str
    backend: str
    platform: str
    filename: str
    code: bool = False


KNOWN = (
    Platform(runtime="onnx", backend="onnxruntime", platform="onnxruntime_onnx", filename="model.onnx"),
    Platform(runtime="torchscript", backend="pytorch", platform="pytorch_libtorch", filename="model.pt", code=True),
    Platform(runtime="torchexport", backend="pytorch", platform="torch_export", filename="model.pt2", code=True),
    Platform(runtime=PYTHON, backend=PYTHON, platform="", filename="model.py", code=True),
    Platform(runtime=ENSEMBLE, backend="", platform=ENSEMBLE, filename=""),
)


def find(backend: str, platform: str, filename: str, files: Collection[str]) -> Platform:
    """The kind of a model.

    Args:
        backend, platform, filename: what the configuration says; "" where it says nothing.
        files: names of the files of a version.

    Raises:
        Invalid: there is no such backend or platform, or no way to tell.
    """
    if backend or platform:
        return _named(backend, platform, filename, files)
    by_file = [kind for kind in KNOWN if kind.filename and kind.filename in files]
    if len(by_file) != 1:
        expected = ", ".join(kind.filename for kind in KNOWN if kind.filename)
        raise Invalid(
            f"no backend is named, and the files do not tell it: there must be exactly one of {expected}",
            reason="INVALID_CONFIG",
        )
    return by_file[0]


def of_runtime(runtime: str) -> Platform:
    """The kind of model that a runtime runs; one that has no names of its own in configurations goes by the runtime's.

    A runtime that is not known here counts as one that runs code.
    """
    for kind in KNOWN:
        if kind.runtime == runtime:
            return kind
    return Platform(runtime=runtime, backend=runtime, platform="", filename="", code=True)


def _named(backend: str, platform: str, filename: str, files: Collection[str]) -> Platform:
    fitting = [kind for kind in KNOWN if backend in ("", kind.backend) and platform in ("", kind.platform)]
    if len(fitting) > 1:
        present = [kind for kind in fitting if kind.filename in (filename, *files)]
        ending = [
            kind for kind in fitting if filename and filename.rpartition(".")[2] == kind.filename.rpartition(".")[2]
        ]
        fitting = ending or present or fitting
    if not fitting and not platform and backend in plugins.names(runtimes):
        return of_runtime(backend)
    if not fitting:
        known = ", ".join(sorted({name for kind in KNOWN for name in (kind.backend, kind.platform) if name}))
        raise Invalid(
            f"no runtime for backend '{backend[:64]}' and platform '{platform[:64]}'; known are {known}",
            reason="UNKNOWN_BACKEND",
        )
    return fitting[0]
