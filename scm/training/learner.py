"""A network that learns: its weights, their moving average, its optimiser and counters."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """A second network that follows the trained one: ema <- decay ema + (1 - decay) net."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._mine: list[Tensor] = list(self.net.parameters())
        self._theirs: list[Tensor] = list(net.parameters())
        self._buffers = list(zip(self.net.buffers(), net.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move every weight towards the trained network's; buffers are copied."""
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)

    @torch.no_grad()
    def update_where(self, finite: Tensor, decay: float) -> None:
        """`update` where the 0-dim bool `finite` holds, nothing elsewhere; never read by the host.

        Three passes over the weights instead of one: for devices on which reading it would wait.
        """
        steps = torch._foreach_sub(self._theirs, self._mine)
        torch._foreach_mul_(steps, finite * (1 - decay))
        torch._foreach_add_(self._mine, steps)
        for mine, theirs in self._buffers:
            mine.copy_(torch.where(finite, theirs, mine))


@dataclass
class Skipped:
    """Steps whose loss or gradient was not finite; 0-dim int64 tensors that stay on the device."""

    total: Tensor
    in_a_row: Tensor  # up to the last step

    @classmethod
    def on(cls, device: torch.device, total: int = 0, in_a_row: int = 0) -> "Skipped":
        """These counts as tensors."""
        return cls(torch.tensor(total, device=device), torch.tensor(in_a_row, device=device))

    def count(self, finite: Tensor) -> None:
        """Count one step, whose 0-dim bool says whether it was taken."""
        self.total += ~finite
        self.in_a_row = (self.in_a_row + 1) * ~finite


class Learner:
    """All that a training step changes, and that a checkpoint must hold."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net = net
        self.ema = Ema(net)
        self.optimizer = optimizer
        self.skipped = Skipped.on(next(net.parameters()).device)
        self.step = 0  # finished steps, the skipped ones included
        self.images_seen = 0

    @property
    def lr(self) -> float:
        """The rate that the optimiser was made with: the schedule's peak."""
        return self.optimizer.defaults["lr"]

    def take_step(self, finite: Tensor, decay: float) -> None:
        """Move weights, optimiser and average where `finite` holds; leave all three elsewhere.

        On a CPU the flag is simply read. On a GPU that would wait for the backward pass, so a fused
        optimiser gets the flag as `found_inf`, as from torch's GradScaler, and the average moves by
        a weight on the device. An optimiser without a fused kernel does wait there, once per step.
        """
        self.skipped.count(finite)
        if skips_by_itself(self.optimizer, finite.device):
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.ema.update_where(finite, decay)
        elif finite:
            self.optimizer.step()
            self.ema.update(decay)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; waits for the device."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "skipped": {name: int(count) for name, count in vars(self.skipped).items()},
            "net": dict(self.net.state_dict()),
            "ema": dict(self.ema.net.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Stand where `saved` stood, bit for bit."""
        self.step, self.images_seen = saved["step"], saved["images_seen"]
        self.skipped = Skipped.on(self.skipped.total.device, **saved["skipped"])
        self.net.load_state_dict(saved["net"])
        self.ema.net.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def branch_from(self, saved: dict[str, Any]) -> None:
        """Stand where another learner stood, with the settings of one's own optimiser.

        Its moments go on as they are: with another beta the first average is what it was.
        """
        mine = self.optimizer.state_dict()["param_groups"]
        self.load_state_dict({**saved, "optimizer": {**saved["optimizer"], "param_groups": mine}})


def skips_by_itself(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether its kernel can leave everything as it is without the host knowing."""
    return device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False)
