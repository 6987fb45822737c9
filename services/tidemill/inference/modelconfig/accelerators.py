"""Execution accelerators of configurations, as execution providers of ONNX Runtime."""

import re
from collections.abc import Mapping

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.inference.inputs import shown
from tidemill.inference.modelconfig.tensors import refuse

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": CUDA, "openvino": "OpenVINOExecutionProvider"}
_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
_TENSORRT = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "max_cached_engines": "",
    "minimum_segment_size": "trt_min_subgraph_size",
}
"""Options of the accelerator, by the provider's name for each; "" for those without effect."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
Provider = tuple[str, Mapping[str, str]]


def providers(message: pb.ModelConfig, gpus: tuple[int, ...]) -> tuple[Provider, ...]:
    """The execution providers that the configuration asks for, the preferred first; none when it says nothing.

    Raises:
        Invalid: one is unknown, or has an unknown option.
    """
    chosen = message.optimization.execution_accelerators
    if chosen.cpu_execution_accelerator and gpus:
        raise refuse("cpu_execution_accelerator is for instances on the CPU")
    if chosen.gpu_execution_accelerator and not gpus:
        raise refuse("gpu_execution_accelerator needs an instance_group on a GPU")
    found: list[Provider] = []
    for accelerator in (*chosen.gpu_execution_accelerator, *chosen.cpu_execution_accelerator):
        name = accelerator.name.lower()
        if name not in _PROVIDERS:
            known = ", ".join(_PROVIDERS)
            raise refuse(f"no execution accelerator '{shown(accelerator.name)}'; known are {known}")
        options = _tensorrt(accelerator.parameters) if name == "tensorrt" else _options(accelerator.parameters)
        found.append((_PROVIDERS[name], options if name == "openvino" else {**_device(gpus), **options}))
    if gpus and CUDA not in [name for name, _ in found]:
        found.append((CUDA, _device(gpus)))
    return (*found, (CPU, {})) if found else ()


def _device(gpus: tuple[int, ...]) -> dict[str, str]:
    return {"device_id": str(gpus[0])} if gpus else {}


def _options(parameters: Mapping[str, str]) -> dict[str, str]:
    for key in parameters:
        if not _OPTION.fullmatch(key):
            raise refuse(f"an execution accelerator has no option '{shown(key)}'")
    return dict(parameters)


def _tensorrt(parameters: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in _options(parameters).items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise refuse(f"precision_mode must be one of {', '.join(_PRECISIONS)}, not '{shown(value)}'")
            options.update(_PRECISIONS[value])
        elif key in _TENSORRT:
            if _TENSORRT[key]:
                options[_TENSORRT[key]] = value
        elif key.startswith("trt_"):
            options[key] = value
        else:
            raise refuse(f"the tensorrt accelerator has no option '{shown(key)}'")
    return options
