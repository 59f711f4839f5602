"""The contract of a network, and the draw of data, noise and times that it is trained on.

A network is a module: (x, t, label) -> (F, w), with x (B, C, H, W) = x_t / sigma_data, t (B,) in
radians, label (B,) int64 or None, F (B, C, H, W) and the learned log weight w (B,). All are float32
or float64, whatever it computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Call = Callable[..., tuple[Tensor, Tensor]]  # (net, x, t, label) -> (F, w), plain or compiled


@dataclass(frozen=True)
class Draw:
    """One step's draw of data, noise and times. Noise is z ~ N(0, sigma_data^2 I)."""

    x0: Tensor  # (B, C, H, W) images in [-0.5, 0.5]
    z: Tensor  # (B, C, H, W)
    t: Tensor  # (B,) radians
    label: Tensor | None  # (B,) int64, None for an unconditional network

    def part(self, rows: slice) -> "Draw":
        """These rows of the batch."""
        label = None if self.label is None else self.label[rows]
        return Draw(self.x0[rows], self.z[rows], self.t[rows], label)


def call(net: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """One pass: F (B, C, H, W), w (B,)."""
    return net(x, t, label)
