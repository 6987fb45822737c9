"""Small PyTorch models, built when a test needs them."""

import io
import warnings
from typing import Any

import torch


class Scale(torch.nn.Module):
    """2 * x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Named(torch.nn.Module):
    """{"y": 2 * x}."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": 2 * x}


class Identity(torch.nn.Module):
    """A copy of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def scripted(module: torch.nn.Module) -> bytes:
    """The module as a TorchScript file."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), data)
    return data.getvalue()


def traced(module: torch.nn.Module, *args: torch.Tensor, strict: bool = True) -> bytes:
    """The module as a TorchScript file that was traced with these arguments."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        made = torch.jit.trace(module.eval(), args, strict=strict)  # type: ignore[no-untyped-call]
        torch.jit.save(made, data)
    return data.getvalue()


def exported(
    module: torch.nn.Module, args: tuple[Any, ...], shapes: Any = None, kwargs: dict[str, Any] | None = None
) -> bytes:
    """The module as an archive of `torch.export`, exported with these arguments and dynamic shapes."""
    data = io.BytesIO()
    torch.export.save(torch.export.export(module, args, kwargs, dynamic_shapes=shapes), data)
    return data.getvalue()


def rows(*sizes: int) -> torch.Tensor:
    """Ones in this shape."""
    return torch.ones(*sizes)


BATCH = torch.export.Dim("batch", min=0)
"""A free first dimension, which may be 0."""
