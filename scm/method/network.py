"""The contract of a network, and the draw of data, noise and times that it is trained on.

A network is a module: (x, t, label, s) -> (F, w), with x (B, C, H, W) = x_t / sigma_data, t (B,) in
radians, label (B,) int64 or None, F (B, C, H, W) and the learned log weight w (B,). A network with
a second time is told s (B,) <= t, where its flow map leads; None is 0, the data. All are float32 or
float64, whatever it computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Call = Callable[..., tuple[Tensor, Tensor]]  # `call` below, plain or compiled


@dataclass(frozen=True)
class Draw:
    """One step's draw of data, noise and times. Noise is z ~ N(0, sigma_data^2 I)."""

    x0: Tensor  # (B, C, H, W) images in [-0.5, 0.5]
    z: Tensor  # (B, C, H, W)
    t: Tensor  # (B,) radians
    label: Tensor | None  # (B,) int64, None for an unconditional network
    s: Tensor | None = None  # (B,) radians, s <= t, of a flow map; None: the data, s = 0

    def part(self, rows: slice) -> "Draw":
        """These rows of the batch."""
        label, s = (None if all is None else all[rows] for all in (self.label, self.s))
        return Draw(self.x0[rows], self.z[rows], self.t[rows], label, s)


def call(
    net: nn.Module, x: Tensor, t: Tensor, label: Tensor | None, s: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One pass: F (B, C, H, W), w (B,)."""
    return net(x, t, label) if s is None else net(x, t, label, s)
