"""EQUATIONS of TrigFlow (Lu & Song 2025, sec. 3): the path from data to noise, nothing else.

Shapes: images (B, C, H, W); times t (B,) in radians, 0 is data and pi/2 is noise. `sigma_data` is
the data's standard deviation and also the noise's: z ~ N(0, sigma_data^2 I).
"""

import torch
from torch import Tensor


def broadcast(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), so that a value per sample multiplies an image.

    Raises ValueError where `t` is not one value per image of `like`.
    """
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"one time per image is needed: t has shape {tuple(t.shape)}, "
            f"the images {tuple(like.shape)}"
        )
    return t.view(-1, *[1] * (like.dim() - 1))


def interpolate(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = cos(t) x0 + sin(t) z  (Lu & Song 2025, sec. 3)."""
    t = broadcast(t, x0)
    return torch.cos(t) * x0 + torch.sin(t) * z


def velocity(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """v_t = dx_t/dt = cos(t) z - sin(t) x0  (Lu & Song 2025, sec. 3)."""
    t = broadcast(t, x0)
    return torch.cos(t) * z - torch.sin(t) * x0


def consistency(x_t: Tensor, F: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """f(x_t, t) = cos(t) x_t - sin(t) sigma_data F  (Lu & Song 2025, eq. 6).

    With a diffusion model's F this is the denoiser E[x0 | x_t]; with a consistency model's F it is
    the end of the ODE's trajectory. f(x, 0) = x for every F.
    """
    t = broadcast(t, x_t)
    return torch.cos(t) * x_t - torch.sin(t) * sigma_data * F


def flow_map(x_t: Tensor, F: Tensor, t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """f(x_t, t, s) = cos(t - s) x_t - sin(t - s) sigma_data F: the trajectory's point at time s.

    `consistency` is its s = 0, and f(x, t, t) = x for every F; at s = t, sigma_data F is its
    derivative, the velocity.
    """
    return step(x_t, sigma_data * F, t, s)


def noise_estimate(x_t: Tensor, F: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """z(x_t, t) = sin(t) x_t + cos(t) sigma_data F, the consistency function's other half.

    The pair (f, z) is (x_t, sigma_data F) turned by t, so that x_t = cos(t) f + sin(t) z.
    """
    t = broadcast(t, x_t)
    return torch.sin(t) * x_t + torch.cos(t) * sigma_data * F


def step(x_t: Tensor, dxdt: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = cos(t - s) x_t - sin(t - s) dx/dt, DDIM's step  (Lu & Song 2025, sec. 3).

    Exact where dx/dt is the velocity of one data and noise pair: the pair then stays the same.
    """
    turn = broadcast(t - s, x_t)
    return torch.cos(turn) * x_t - torch.sin(turn) * dxdt


def sigma_from_time(t: Tensor, sigma_data: float) -> Tensor:
    """sigma = sigma_data tan(t), EDM's noise level  (Lu & Song 2025, sec. 3)."""
    return sigma_data * torch.tan(t)


def time_from_sigma(sigma: Tensor, sigma_data: float) -> Tensor:
    """t = arctan(sigma / sigma_data)  (Lu & Song 2025, sec. 3)."""
    return torch.arctan(sigma / sigma_data)
