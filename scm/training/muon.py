"""Muon: an optimiser that gives every direction of a weight matrix a step of the same size."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
ITERATIONS = 5  # 0.003 to 1 have then become 0.68 to 1.2


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions, AdamW for the others.

    A convolution's weight (out, in, kh, kw) is a matrix (out, in * kh * kw). The direction that
    Nesterov's momentum gives is made orthogonal (Jordan et al. 2024) and scaled to the size of
    Adam's steps, so that `lr` means the same for both kinds (Liu et al. 2025, eq. 4). torch's own
    Muon takes matrices alone, and needs a second optimiser beside it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        dtype: torch.dtype,  # in which matrices are made orthogonal
        lr: float,
        momentum: float,  # of matrices
        betas: tuple[float, float],  # of AdamW
        eps: float,
        weight_decay: float,  # decoupled, of both
    ) -> None:
        params = list(params)
        groups = [
            {"params": [p for p in params if p.ndim > 1]},
            {"params": [p for p in params if p.ndim <= 1]},
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        super().__init__(groups, {**defaults, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        matrices, others = self.param_groups
        for group, updates in ((matrices, self._orthogonal), (others, self._adam)):
            params = [p for p in group["params"] if p.grad is not None]
            for p, update in zip(params, updates(params, group), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * update)

    def _orthogonal(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The matrices' updates; those of one shape are made orthogonal together."""
        alike = defaultdict(list)
        for p in params:
            alike[p.flatten(1).shape].append(p)
        updates: dict[Tensor, Tensor] = {}
        for shape, same in alike.items():
            along = torch.stack([self._nesterov(p, group).flatten(1) for p in same])
            along = orthogonal(along.to(self.dtype)).to(along.dtype) * 0.2 * math.sqrt(max(shape))
            updates |= {p: o.view(p.shape) for p, o in zip(same, along, strict=True)}
        return [updates[p] for p in params]

    def _nesterov(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        mean = self._kept(p, "mean").lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(mean, group["momentum"])

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        (beta1, beta2), updates = group["betas"], []
        for p in params:
            assert p.grad is not None
            state = self.state[p]
            step = state["step"] = state.get("step", 0) + 1
            mean = self._kept(p, "mean").lerp_(p.grad, 1 - beta1)
            square = self._kept(p, "square").lerp_(p.grad.square(), 1 - beta2)
            spread = (square / (1 - beta2**step)).sqrt() + group["eps"]
            updates.append(mean / (1 - beta1**step) / spread)
        return updates

    def _kept(self, p: Tensor, name: str) -> Tensor:
        """An average of p's that the state holds, from zero."""
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p)
        return self.state[p][name]


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, columns), singular vectors as they are and singular values near 1.

    Newton and Schulz's iteration with a quintic, on whichever side is shorter (Jordan et al. 2024).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
