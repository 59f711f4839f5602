"""The contract of a network, and the draw of data, noise and times that it is trained on.

A network is a module: (x, t, label, s) -> (F, w), with x (B, C, H, W) = x_t / sigma_data, t (B,) in
radians, label (B,) int64 or None, F (B, C, H, W) and the learned log weight w (B,). A network with
a second time is told s (B,) <= t, where its flow map leads; None is 0, the data. All are float32 or
float64, whatever it computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    noise: Tensor | None = None  # (B, K, C, H, W) of up to K calls that make samples, in x0's place
    first: int = 0  # place of the first row in the whole batch
    own: "Draw | None" = None  # a second draw, whose samples a network makes itself

    def part(self, rows: slice) -> "Draw":
        """These rows of the batch."""
        tensors = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        own = self.own and self.own.part(rows)
        return replace(self, **tensors, own=own, first=self.first + (rows.start or 0))


def call(
    net: nn.Module, x: Tensor, t: Tensor, label: Tensor | None, s: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One pass: F (B, C, H, W), w (B,)."""
    return net(x, t, label) if s is None else net(x, t, label, s)
