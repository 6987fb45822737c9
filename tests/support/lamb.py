"""LAMB over whole tensors, as the paper writes it: what the one that is cut into blocks is compared with."""

from collections.abc import Iterable

import torch


class WholeLamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with the identity for phi."""

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        *,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step."""
        for group in self.param_groups:
            for x in group["params"]:
                self._step(x, x.grad, group["lr"], group["betas"], group["eps"], group["weight_decay"])

    def _step(
        self, x: torch.Tensor, g: torch.Tensor, lr: float, betas: tuple[float, float], eps: float, decay: float
    ) -> None:
        state = self.state[x]
        if not state:
            state.update(t=0, m=torch.zeros_like(x), v=torch.zeros_like(x))
        state["t"] += 1
        beta1, beta2 = betas
        m, v, t = state["m"], state["v"], state["t"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        update = r.add(x, alpha=decay)
        weights, length = float(x.double().norm()), float(update.double().norm())
        trust = weights / length if weights and length else 1.0
        x -= torch.tensor(lr * trust, dtype=torch.float32) * update
