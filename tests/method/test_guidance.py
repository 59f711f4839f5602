"""Guidance against Gaussians, in float64: scores are extrapolated, and with them all else."""

import pytest
import torch
from closed_forms import GaussianData, points
from methods import SD
from torch import nn

from scm.method import trigflow, velocity
from scm.method.guidance import Guided
from scm.method.network import Draw, call

DATA, WEAKER = GaussianData(s=0.5, sigma_data=SD), GaussianData(s=0.9, sigma_data=SD)


class Net(nn.Module):
    """A closed form that notes the labels it is told."""

    def __init__(self, data):
        super().__init__()
        self.data, self.told = data, []

    def forward(self, x, t, label=None):
        self.told.append(label)
        F, w = self.data.diffusion_net(x, t)
        return F, w + self.data.s


def guided(w, hears=True, below=None):
    nets = Net(DATA), Net(WEAKER)
    return Guided(*nets, guidance=w, below=below, guide_hears_label=hears, sigma_data=SD)


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 3.0])
def test_the_denoiser_has_the_extrapolated_score(w):
    """Tweedie: D = (x_t + (sd sin t)^2 score) / cos t; score -x_t (w / V - (w - 1) / V_weaker)."""
    x, _, t = points()
    F, _ = guided(w)(x / SD, t)
    V, V_weaker = (trigflow.broadcast(data.variance(t), x) for data in (DATA, WEAKER))
    score = -x * (w / V - (w - 1) / V_weaker)
    at = trigflow.broadcast(t, x)
    expected = (x + (SD * torch.sin(at)) ** 2 * score) / torch.cos(at)
    torch.testing.assert_close(trigflow.consistency(x, F, t, SD), expected)


def test_at_1_it_is_the_network_and_the_log_weight_is_always_its():
    x, _, t = points()
    F, w = guided(1.0)(x, t)
    torch.testing.assert_close(F, DATA.diffusion_net(x, t)[0])
    torch.testing.assert_close(w, guided(7.0)(x, t)[1])
    torch.testing.assert_close(w, Net(DATA)(x, t)[1])


@pytest.mark.parametrize("hears", [True, False])
def test_the_guide_is_told_the_label_where_it_has_classes(hears):
    x, _, t = points(3)
    label, net = torch.arange(3), guided(2.0, hears)
    net(x, t, label)
    assert net.net.told == [label]
    assert net.guide.told == [label if hears else None]


def test_above_a_noise_level_nothing_is_moved():
    x, _, t = points()
    sigmas = SD * torch.tan(t)
    level = float(sigmas.sort().values[2:4].mean())
    F, _ = guided(3.0, below=level)(x, t)
    moved = trigflow.broadcast(sigmas <= level, x)
    assert moved.any() and not moved.all()
    expected = torch.where(moved, guided(3.0)(x, t)[0], DATA.diffusion_net(x, t)[0])
    torch.testing.assert_close(F, expected)


def test_a_guided_teachers_velocity_is_the_guided_networks():
    asked = []

    def load(path):
        asked.append(path)
        return Net(WEAKER), True

    x0, z, t = points()
    draw = Draw(x0=x0, z=z, t=t, label=None)
    x_t = trigflow.interpolate(x0, z, t)
    dxdt = velocity.GuidedTeacher(
        teacher=Net(DATA), guide="weak", guidance=2.5, below=None, load_guide=load, sigma_data=SD
    )(None, x_t, draw, call)
    expected = DATA.velocity(x_t, t) + 1.5 * (DATA.velocity(x_t, t) - WEAKER.velocity(x_t, t))
    torch.testing.assert_close(dxdt, expected)
    assert asked == ["weak"]
