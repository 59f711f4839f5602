"""What other programs call: the network as it predicts, without the learned log weight."""

from torch import Tensor, nn

from scm.method.network import call


class Prediction(nn.Module):
    """prediction = sigma_data F(x_t / sigma_data, t, label, s).

    So f(x_t, t, s) = cos(t - s) x_t - sin(t - s) prediction; s is 0 for a network of one time.
    """

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(
        self, x_t: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t and s (B,) radians, label (B,) int64 -> (B, C, H, W)."""
        F, _ = call(self.net, x_t / self.sigma_data, t, label, s)
        return self.sigma_data * F
