"""Makes the module `triton_python_backend_utils`, which there is in the processes of models only."""

from pathlib import Path
from types import ModuleType
from typing import Any

from tidemill.inference.isolation.link import Link
from tidemill.inference.pythonbackend import configs, constants, errors, reports, requests, responses, tensors

NAME = "triton_python_backend_utils"
_OFFERED: dict[ModuleType, tuple[str, ...]] = {
    configs: (
        "ModelConfig",
        "get_input_config_by_name",
        "get_output_config_by_name",
        "using_decoupled_model_transaction_policy",
    ),
    constants: tuple(name for name in vars(constants) if name.startswith("TRITONSERVER_")),
    errors: ("TritonError", "TritonModelException"),
    requests: (
        "InferenceTrace",
        "PreferredMemory",
        "get_input_tensor_by_name",
        "get_output_tensor_by_name",
    ),
    responses: ("InferenceResponse", "InferenceResponseSender"),
    tensors: (
        "Tensor",
        "deserialize_bytes_tensor",
        "numpy_to_triton_type",
        "serialize_byte_tensor",
        "triton_string_to_numpy",
        "triton_to_numpy_type",
    ),
}


def make(link: Link, directory: Path) -> Any:
    """The module.

    Args:
        link: to the server.
        directory: of the model's version.
    """
    module: Any = ModuleType(NAME, "What models use of the server.")
    for source, names in _OFFERED.items():
        for name in names:
            setattr(module, name, getattr(source, name))
    for kind in (requests.InferenceRequest, reports.Logger, reports.MetricFamily):
        setattr(module, kind.__name__, type(kind.__name__, (kind,), {"link": link, "__doc__": kind.__doc__}))
    module.Logger.LogLevel = reports.LogLevel
    module.get_model_dir = lambda: str(directory)
    return module
