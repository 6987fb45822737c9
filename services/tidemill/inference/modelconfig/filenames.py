"""Model files under the names by which runtimes look for them."""

from collections.abc import Iterable

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration
from tidemill.inference.modelconfig.platforms import of_runtime


def presented(configuration: Configuration, paths: Iterable[str]) -> dict[str, str]:
    """The path of each file of a version, by the path under which the runtime gets it.

    They are the same, except for a model file that the configuration calls by another name than the runtime does.

    Raises:
        Invalid: the model file that the configuration names is not there.
    """
    found = {path: path for path in paths}
    filename = pb.ModelConfig.FromString(configuration.tracked).default_model_filename
    usual = of_runtime(configuration.backend).filename
    if not filename or filename == usual:
        return found
    if filename not in found:
        raise Invalid(f"the model file '{filename}' is not there", reason="FILE_MISSING")
    del found[filename]
    return {**found, usual or filename: filename}
