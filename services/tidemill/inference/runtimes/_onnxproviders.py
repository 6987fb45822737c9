"""Execution providers of ONNX Runtime: which a version runs on, and with what options."""

from collections.abc import Sequence

from tidemill.errors import Invalid
from tidemill.inference.runtimes.base import Provider, Settings

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_GPU = frozenset(
    {CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "ROCMExecutionProvider"}
    | {"MIGraphXExecutionProvider"}
)
_HARMLESS = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "device_id",
        "do_copy_in_default_stream",
        "enable_skip_layer_norm_strict_mode",
        "gpu_mem_limit",
        "prefer_nhwc",
        "trt_bf16_enable",
        "trt_builder_optimization_level",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_max_partition_iterations",
        "trt_max_workspace_size",
        "trt_min_subgraph_size",
        "use_tf32",
    }
)
"""Options that name no file and load no code."""


def wanted(settings: Settings, known: Sequence[str]) -> list[Provider]:
    """The providers to ask for, the preferred first: the configuration's, or else the server's.

    A configuration that asks for GPUs and names no provider for them gets CUDA before the others, where this build has
    it.

    Raises:
        Invalid: one is not among the `known` ones; or one has an option that may name a file, in a configuration of
            somebody who is not trusted.
    """
    own = settings.configuration.providers if settings.configuration is not None else ()
    chosen = list(own or settings.providers)
    for name, options in chosen:
        if name not in known:
            raise Invalid(f"no execution provider {name[:64]!r}; known are {', '.join(known)}", reason="NO_PROVIDER")
        risky = sorted(options.keys() - _HARMLESS)
        if own and risky and not settings.trusted:
            raise Invalid(
                f"option {risky[0][:64]!r} of {name} is for configurations of trusted sources only", reason="UNTRUSTED"
            )
    if settings.gpus and CUDA in known and not any(is_gpu(name) for name, _ in chosen):
        chosen.insert(0, (CUDA, {}))
    return chosen


def on(gpu: int | None, chosen: Sequence[Provider]) -> list[Provider]:
    """The same providers on this device."""
    if gpu is None:
        return list(chosen)
    return [(name, {**options, "device_id": str(gpu)} if is_gpu(name) else options) for name, options in chosen]


def is_gpu(name: str) -> bool:
    """Whether a provider runs on GPUs."""
    return name in _GPU
