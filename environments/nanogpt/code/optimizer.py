"""AdamW, or Muon for the matrices inside the blocks and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable

import config
import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al., 2024).

    The update is scaled to the size of one of AdamW's (Liu et al., 2025), so that one learning rate and one
    weight decay suit both.
    """

    def __init__(
        self, weights: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(mean, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest matrix with singular values 1: five Newton-Schulz steps of degree five."""
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimisers that together hold every weight once."""
    if config.OPTIMIZER not in ("adamw", "muon"):
        raise SystemExit(f"config.py: OPTIMIZER is {config.OPTIMIZER!r}, but must be adamw or muon")
    named = dict(model.named_parameters())
    inside = [
        n for n, w in named.items() if config.OPTIMIZER == "muon" and n.startswith("blocks.") and w.dim() == 2
    ]
    rest = [w for n, w in named.items() if n not in inside]
    groups = [
        {"params": [w for w in rest if w.dim() == 2], "weight_decay": config.WEIGHT_DECAY},
        {"params": [w for w in rest if w.dim() != 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.LEARNING_RATE, betas=(0.9, config.BETA2))
    ]
    if inside:
        found.append(Muon([named[n] for n in inside], config.LEARNING_RATE, config.WEIGHT_DECAY))
    return found
