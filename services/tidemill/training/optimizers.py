"""Optimizers for workers that hold the parameters themselves: the same as those of the parameter servers, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.config import from_mapping, parameter
from tidemill.errors import DataLoss, invalid
from tidemill.training.strategies.base import Flat

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "list[Tensor | None]"]
"""Name -> the one tensor of it; None until the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent (Robbins and Monro 1951), as `torch.optim.SGD`."""

    learning_rate: float = parameter("factor of the gradient", 0.01, low=0, high=1e6)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    decoupled_weight_decay: bool = parameter(
        "take weight_decay, times the learning rate, off the parameters instead", False
    )
    fused: bool = parameter("one and a half times as fast, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """Gradient descent with momentum (Polyak 1964, the heavy ball), as `torch.optim.SGD` with `momentum`."""

    learning_rate: float = parameter("factor of the averaged gradient", 0.01, low=0, high=1e6)
    momentum: float = parameter("part of the average that is kept at each step", 0.9, low=0, high=1)
    dampening: float = parameter("part of each gradient that does not enter the average", 0.0, low=0, high=1)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    decoupled_weight_decay: bool = parameter(
        "take weight_decay, times the learning rate, off the parameters instead", False
    )
    fused: bool = parameter("twice as fast, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nesterov:
    """Gradient descent with Nesterov's momentum, in the form of Sutskever et al. (ICML 2013), as `torch.optim.SGD`."""

    learning_rate: float = parameter("factor of the averaged gradient", 0.01, low=0, high=1e6)
    momentum: float = parameter("part of the average that is kept at each step", 0.9, low=0, high=1)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    decoupled_weight_decay: bool = parameter(
        "take weight_decay, times the learning rate, off the parameters instead", False
    )
    fused: bool = parameter("more than twice as fast, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), as `torch.optim.Adam`."""

    learning_rate: float = parameter("size of a step", 0.001, low=0, high=1e6)
    beta1: float = parameter("part of the mean gradient that is kept at each step", 0.9, low=0, high=0.999999)
    beta2: float = parameter("part of the mean squared gradient that is kept", 0.999, low=0, high=0.999999)
    epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    fused: bool = parameter("several times faster, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW`."""

    learning_rate: float = parameter("size of a step", 0.001, low=0, high=1e6)
    beta1: float = parameter("part of the mean gradient that is kept at each step", 0.9, low=0, high=0.999999)
    beta2: float = parameter("part of the mean squared gradient that is kept", 0.999, low=0, high=0.999999)
    epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
    weight_decay: float = parameter(
        "part of a parameter, times the learning rate, lost at each step", 0.01, low=0, high=1
    )
    fused: bool = parameter("several times faster, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad:
    """Adagrad (Duchi, Hazan and Singer, JMLR 2011, the diagonal form), as `torch.optim.Adagrad`."""

    learning_rate: float = parameter("size of the first steps", 0.01, low=0, high=1e6)
    learning_rate_decay: float = parameter("how fast the learning rate falls with the steps", 0.0, low=0, high=1e6)
    initial_accumulator: float = parameter("sum of squared gradients to begin with", 0.0, low=0, high=1e6)
    epsilon: float = parameter("added to the denominator", 1e-10, low=1e-20, high=1)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    fused: bool = parameter("three times as fast, and not to the last bit PyTorch's default", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rmsprop:
    """RMSprop (Tieleman and Hinton 2012; centered: Graves 2013), as `torch.optim.RMSprop`."""

    learning_rate: float = parameter("size of a step", 0.01, low=0, high=1e6)
    alpha: float = parameter("part of the mean squared gradient that is kept at each step", 0.99, low=0, high=1)
    epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
    weight_decay: float = parameter("L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1)
    momentum: float = parameter("part of the averaged step that is kept; 0 = no average", 0.0, low=0, high=1)
    centered: bool = parameter("divide by the gradient's deviation from its mean instead of its size", False)


@dataclass(frozen=True, slots=True)
class Kind:
    """An optimizer: its hyperparameters, its state before the first step, and one step in place."""

    config: type[Any]
    start: Callable[[Any, int], State]
    update: Callable[[Any, "list[Tensor]", "list[Tensor]", State], None]


def _nothing(config: Any, size: int) -> State:
    return {}


def _average(config: Any, size: int) -> State:
    return {"momentum_buffer": [None]}


def _moments(config: Any, size: int) -> State:
    import torch

    return {"exp_avg": [torch.zeros(size)], "exp_avg_sq": [torch.zeros(size)], "step": [torch.zeros(())]}


def _sum(config: Any, size: int) -> State:
    import torch

    return {"sum": [torch.full((size,), float(config.initial_accumulator))], "step": [torch.zeros(())]}


def _squares(config: Any, size: int) -> State:
    import torch

    names = ["square_avg", *["grad_avg"] * config.centered, *["momentum_buffer"] * (config.momentum > 0)]
    return {**{name: [torch.zeros(size)] for name in names}, "step": [torch.zeros(())]}


def _decay(config: Any, parameters: "list[Tensor]") -> float:
    """The L2 penalty for the gradient; 0 when the parameters were shrunk instead (Loshchilov and Hutter 2019)."""
    if not config.decoupled_weight_decay:
        return float(config.weight_decay)
    if config.weight_decay:
        for values in parameters:
            values.mul_(1 - config.learning_rate * config.weight_decay)
    return 0.0


def _sgd(config: Any, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State) -> None:
    from torch.optim.sgd import sgd

    sgd(
        parameters,
        gradients,
        state.get("momentum_buffer", [None]),
        foreach=False,
        fused=config.fused,
        lr=config.learning_rate,
        weight_decay=_decay(config, parameters),
        momentum=getattr(config, "momentum", 0.0),
        dampening=getattr(config, "dampening", 0.0),
        nesterov=isinstance(config, Nesterov),
        maximize=False,
    )


def _adam(config: Any, parameters: "list[Tensor]", gradients: "list[Tensor]", state: Any) -> None:
    from torch.optim.adam import adam
    from torch.optim.adamw import adamw

    step = adamw if isinstance(config, AdamW) else adam
    step(
        parameters,
        gradients,
        state["exp_avg"],
        state["exp_avg_sq"],
        [],
        state["step"],
        foreach=False,
        fused=config.fused,
        amsgrad=False,
        beta1=config.beta1,
        beta2=config.beta2,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        eps=config.epsilon,
        maximize=False,
    )


def _adagrad(config: Any, parameters: "list[Tensor]", gradients: "list[Tensor]", state: Any) -> None:
    from torch.optim.adagrad import adagrad

    adagrad(
        parameters,
        gradients,
        state["sum"],
        state["step"],
        foreach=False,
        fused=config.fused,
        lr=config.learning_rate,
        lr_decay=config.learning_rate_decay,
        weight_decay=config.weight_decay,
        eps=config.epsilon,
        maximize=False,
    )


def _rmsprop(config: Any, parameters: "list[Tensor]", gradients: "list[Tensor]", state: Any) -> None:
    from torch.optim.rmsprop import rmsprop

    rmsprop(
        parameters,
        gradients,
        state["square_avg"],
        state.get("grad_avg", []),
        state.get("momentum_buffer", []),
        state["step"],
        foreach=False,
        lr=config.learning_rate,
        alpha=config.alpha,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        centered=config.centered,
    )


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "adagrad": Kind(Adagrad, _sum, _adagrad),
        "adam": Kind(Adam, _moments, _adam),
        "adamw": Kind(AdamW, _moments, _adam),
        "momentum": Kind(Momentum, _average, _sgd),
        "nesterov": Kind(Nesterov, _average, _sgd),
        "rmsprop": Kind(Rmsprop, _squares, _rmsprop),
        "sgd": Kind(Sgd, _nothing, _sgd),
    }
)
"""Every optimizer there is; each is element-wise, so that it does not matter where the parameters are cut."""


def find(name: str) -> Kind:
    """An optimizer by name.

    Raises:
        Invalid: there is none.
    """
    if name not in KINDS:
        raise invalid("optimizer.name", f"must be one of {', '.join(KINDS)}, not {name[:40]!r}")
    return KINDS[name]


class Optimizer:
    """An optimizer at work on one flat vector. PyTorch is imported when one is made, not before.

    Args:
        name: which one.
        options: its hyperparameters.
        size: number of elements of the vector.

    Raises:
        Invalid: there is no such optimizer, or a hyperparameter is wrong.
    """

    def __init__(self, name: str, options: Mapping[str, Any], size: int) -> None:
        self._kind = find(name)
        self._config = from_mapping(self._kind.config, options, "optimizer.parameters")
        self._size = size
        self._state = self._kind.start(self._config, size)

    @property
    def learning_rate(self) -> float:
        """The one that it was made with."""
        return float(self._config.learning_rate)

    def step(self, parameters: Flat, gradient: Flat, learning_rate: float | None = None) -> None:
        """Make one step in place.

        Args:
            parameters: all of them.
            gradient: undefined afterwards.
            learning_rate: in place of the one that it was made with.
        """
        import torch

        given = self._config if learning_rate is None else replace(self._config, learning_rate=learning_rate)
        with torch.no_grad():
            self._kind.update(given, [torch.from_numpy(parameters)], [torch.from_numpy(gradient)], self._state)

    def state(self) -> dict[str, Flat]:
        """A copy of the state by name; zeros where there is none before the first step."""
        state = self._blank()
        for name, (tensor,) in self._state.items():
            if tensor is not None:
                state[name][:] = tensor.numpy().reshape(-1)
        return state

    def restore(self, state: Mapping[str, Flat]) -> None:
        """Go on after a step, from what `state` gave then.

        Raises:
            DataLoss: it is not the state of this optimizer.
        """
        import torch

        wanted = self._blank()
        if {name: (values.dtype, values.shape) for name, values in state.items()} != {
            name: (values.dtype, values.shape) for name, values in wanted.items()
        }:
            raise DataLoss("the checkpoint is of another optimizer", reason="BAD_CHECKPOINT")
        for name, (tensor,) in self._state.items():
            shape = (self._size,) if tensor is None else tuple(tensor.shape)
            self._state[name] = [torch.from_numpy(state[name].reshape(shape).copy())]

    def reset(self) -> None:
        """Begin again: no step was made."""
        self._state = self._kind.start(self._config, self._size)

    def _blank(self) -> dict[str, Flat]:
        return {
            name: np.zeros(self._size if tensor is None else tensor.numel(), np.float32)
            for name, (tensor,) in self._state.items()
        }
