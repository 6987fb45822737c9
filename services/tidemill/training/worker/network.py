"""A model's network in torch, with all its parameters in one flat vector."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tidemill.errors import Invalid
from tidemill.training.models.base import FLOAT, Model
from tidemill.training.samples import Array
from tidemill.training.strategies.base import Flat

MAX_PARAMETERS = 2**28
"""Most parameters of a model: 1 GiB as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that determines a network but its parameters."""

    model: type[Model]
    config: Any
    sample_shape: tuple[int, ...]
    classes: int
    mean: Array
    std: Array
    """Mean and standard deviation of the training samples, float32, of a shape that fits a sample's."""


class Classifier(nn.Module):
    """[N, ...] raw samples -> logits [N, classes]; standardizing the samples is part of it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.network = plan.model.build(plan.config, plan.sample_shape, plan.classes)
        self.standardize = plan.model.dtype == FLOAT
        if self.standardize:
            self.register_buffer("mean", torch.from_numpy(plan.mean))
            self.register_buffer("std", torch.from_numpy(plan.std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.network((x - self.mean) / self.std if self.standardize else x)
        return logits


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of samples [N, ...], float32, to standardize them with.

    Each number of a flat sample has its own; images [H, W] share one, images [C, H, W] and larger samples have one for
    each channel. A deviation that float32 cannot tell from 0 becomes 1.
    """
    axes = tuple(axis for axis in range(x.ndim) if axis == 0 or axis >= (1 if x.ndim == 3 else 2))
    count = x.size // int(np.prod([s for a, s in enumerate(x.shape) if a not in axes], initial=1))
    total: Any = 0.0
    for part in _chunks(x):
        total = total + part.sum(axes, keepdims=True)
    mean = total / count
    squares: Any = 0.0
    for part in _chunks(x):
        squares = squares + np.square(part - mean).sum(axes, keepdims=True)
    std = np.sqrt(squares / count)
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return mean[0].astype(np.float32), std[0].astype(np.float32)


def _chunks(x: Array) -> Iterator[Array]:
    for start in range(0, len(x), 4096):
        yield x[start : start + 4096].astype(np.float64)


class Network:
    """A classifier whose parameters are views of one flat vector, and their gradients of another.

    Args:
        plan: what to build.
        seed: makes the first values.

    Raises:
        Invalid: with reason MODEL_TOO_LARGE.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self._seed = seed
        self._pristine = True
        self._ready: Callable[[int, int], None] | None = None
        with torch.device("meta"):
            size = sum(p.numel() for p in plan.model.build(plan.config, plan.sample_shape, plan.classes).parameters())
        if size > MAX_PARAMETERS:
            raise Invalid(
                f"model: it has {size} parameters; at most {MAX_PARAMETERS} are possible", reason="MODEL_TOO_LARGE"
            )
        torch.manual_seed(seed)
        self._classifier = Classifier(plan)
        self._flat = torch.empty(size)
        self._gradient = torch.zeros(size)
        self.tensors: list[tuple[str, tuple[int, ...]]] = []
        position = 0
        for name, parameter in self._classifier.network.named_parameters():
            end = position + parameter.numel()
            self._flat[position:end] = parameter.data.reshape(-1)
            parameter.data = self._flat[position:end].view(parameter.shape)
            parameter.grad = self._gradient[position:end].view(parameter.shape)
            parameter.register_post_accumulate_grad_hook(self._told(position, end))  # type: ignore[no-untyped-call]
            self.tensors.append((name, tuple(parameter.shape)))
            position = end

    @property
    def flat(self) -> Flat:
        """A copy of the parameters."""
        copied: Flat = self._flat.numpy().copy()
        return copied

    def first(self) -> Flat:
        """The first values, also when others were loaded since."""
        return self.flat if self._pristine else type(self)(self.plan, self._seed).flat

    @property
    def slope(self) -> Flat:
        """Where `gradient` puts what it returns."""
        found: Flat = self._gradient.numpy()
        return found

    def load(self, flat: Flat) -> None:
        """Take these parameters."""
        self._pristine = False
        self._flat.numpy()[:] = flat

    def gradient(
        self, x: Array, y: Array, seed: int, ready: Callable[[int, int], None] | None = None
    ) -> tuple[Flat, float]:
        """The gradient of the mean cross-entropy of samples `x` [N, ...] of the classes `y` [N], and that mean.

        Args:
            x: samples of any real number type; none give zeros.
            y: their classes, int64.
            seed: makes what is random in training, such as dropout.
            ready: is told that the elements from one position to another are there, while others are being computed.
        """
        self._gradient.zero_()
        if not len(x):
            return self._gradient.numpy(), 0.0
        torch.manual_seed(seed)
        self._classifier.train()
        loss = nn.functional.cross_entropy(self._classifier(self.tensor(x)), torch.from_numpy(y))
        self._ready = ready
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._ready = None
        return self._gradient.numpy(), float(loss.detach())

    def _told(self, start: int, stop: int) -> Callable[[torch.Tensor], None]:
        def told(_: torch.Tensor) -> None:
            if self._ready is not None:
                self._ready(start, stop)

        return told

    def logits(self, x: Array) -> Array:
        """Logits of samples [N, ...] without dropout; float32 [N, classes]."""
        self._classifier.eval()
        with torch.no_grad():
            out: Array = self._classifier(self.tensor(x)).numpy()
        return out

    def tensor(self, x: Array) -> torch.Tensor:
        """Samples of any real number type in the element type that the network takes."""
        return torch.from_numpy(np.ascontiguousarray(x, self.plan.model.dtype))

    def named(self) -> dict[str, Array]:
        """A copy of the parameters by name, and of the numbers that samples are standardized with."""
        return {name: value.numpy().copy() for name, value in self._classifier.state_dict().items()}

    def detached(self) -> Classifier:
        """A classifier with parameters of its own, in evaluation mode."""
        copy = Classifier(self.plan)
        copy.load_state_dict(self._classifier.state_dict())
        return copy.eval()


def compute_threads(threads: int) -> None:
    """Set how many threads this process computes with, and that it gives the same results every time."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import a compiler for a second


def shapes(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """The shapes of named tensors."""
    return [shape for _, shape in tensors]
