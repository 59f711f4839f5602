"""Guidance: a network's answer moved away from that of a weaker one."""

import math

import torch
from torch import Tensor, nn

from scm.method import trigflow


class Guided(nn.Module):
    """F + (w - 1) (F - F_guide), w being the guidance: 1 is the network itself.

    Velocity and denoiser are linear in F, so both are extrapolated by w. The guide is a smaller or
    less trained diffusion model of the same data (Karras et al. 2024, autoguidance), or for a
    conditional network one that is told no class (Ho & Salimans 2022, classifier-free guidance).
    Above the noise level `below` nothing is moved, which keeps the samples' variety (Kynkaanniemi
    et al. 2024, guidance in an interval).
    """

    def __init__(
        self,
        net: nn.Module,
        guide: nn.Module,
        *,
        guidance: float,
        below: float | None,  # sigma in the data's units; None: at every noise level
        guide_hears_label: bool,
        sigma_data: float,
    ) -> None:
        super().__init__()
        self.net, self.guide = net, guide
        self.guidance, self.guide_hears_label = guidance, guide_hears_label
        self.t_below = math.pi / 2 if below is None else math.atan(below / sigma_data)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """F (B, C, H, W), and the network's own log weight w (B,)."""
        F, w = self.net(x, t, label)
        weaker, _ = self.guide(x, t, label if self.guide_hears_label else None)
        strength = torch.where(t <= self.t_below, self.guidance, 1.0).to(F.dtype)
        return torch.lerp(weaker, F, trigflow.broadcast(strength, F)), w
