"""The exponential moving average of the weights: what is sampled, evaluated and exported.

Knows nothing of schedules: the decay is given to it step by step (`schedules.ema_decay`).
"""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A second network that follows the trained one: ema <- decay ema + (1 - decay) net."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._pairs = list(zip(self.net.parameters(), net.parameters(), strict=True))
        self._buffers = list(zip(self.net.buffers(), net.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move every weight towards the trained network's; buffers are copied."""
        mine, theirs = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for mine_buffer, their_buffer in self._buffers:
            mine_buffer.copy_(their_buffer)

    @torch.no_grad()
    def update_where(self, finite: Tensor, decay: float) -> None:
        """`update` where the 0-dim bool `finite` holds, nothing elsewhere; never read by the host.

        Three passes over the weights instead of one: for devices on which reading it would wait.
        """
        mine, theirs = zip(*self._pairs, strict=True)
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, finite * (1 - decay))
        torch._foreach_add_(mine, steps)
        for mine_buffer, their_buffer in self._buffers:
            mine_buffer.copy_(torch.where(finite, their_buffer, mine_buffer))
