"""Samplers against the exact ODE of Gaussian data, an independent scheme, and their promises."""

from itertools import pairwise

import pytest
import torch
from closed_forms import GaussianData

from scm.method import samplers

SD = 0.5
DATA = GaussianData(s=0.9, sigma_data=SD)
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": SD}


def fixed_noise(n=8, shape=(1, 2, 2)):
    z = [
        SD * torch.randn(n, *shape, generator=torch.Generator().manual_seed(k)).double()
        for k in range(5)
    ]
    return lambda k: z[k]


def exact_end(noise):
    """The exact ODE's end from x_T at sigma 80, by the closed form."""
    z = noise(0)
    t = torch.full((len(z),), 80 / SD, dtype=torch.float64).arctan()
    return DATA.consistency(z, t)


def ode_error(kind, steps):
    noise = fixed_noise()
    x = kind(steps=steps, **GRID)(DATA.diffusion_net, noise, None)
    return float((x - exact_end(noise)).abs().max())


@pytest.mark.parametrize(("kind", "ratio"), [(samplers.Ddim, 2), (samplers.Heun, 4)])
def test_order_of_the_ode_samplers(kind, ratio):
    """Doubling the steps divides the error by 2 (first order) or 4 (second order)."""
    errors = [ode_error(kind, steps) for steps in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert ratio * 0.85 < coarse / fine < ratio * 1.3
    assert errors[-1] < 0.02


def edm_heun(denoise, y, sigmas):
    """Karras et al. 2022, Algorithm 1 in its own variables: y = x0 + sigma n, D(y; sigma)."""
    for now, after in pairwise(sigmas):
        d = (y - denoise(y, now)) / now
        y_next = y + (after - now) * d
        if after > 0:
            d_next = (y_next - denoise(y_next, after)) / after
            y_next = y + (after - now) * (d + d_next) / 2
        y = y_next
    return y


@pytest.mark.parametrize("steps", [1, 5, 18])
def test_heun_is_edms_scheme_in_other_variables(steps):
    """Against an independent implementation, with a denoiser that is not linear."""
    noise = fixed_noise()

    def net(x, t, label=None):
        return torch.tanh(x) * torch.cos(t).view(-1, 1, 1, 1) - 0.5 * x, torch.zeros_like(t)

    def denoise(y, sigma):
        t = torch.full((len(y),), sigma / SD, dtype=torch.float64).arctan()
        t4 = t.view(-1, 1, 1, 1)
        x_t = t4.cos() * y
        return t4.cos() * x_t - t4.sin() * SD * net(x_t / SD, t)[0]

    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t_max = torch.tensor(80 / SD).double().arctan()
    expected = edm_heun(denoise, noise(0) / t_max.cos(), [*sigmas.tolist(), 0.0])
    actual = samplers.Heun(steps=steps, **GRID)(net, noise, None)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_network_calls_are_counted_right():
    for sampler, calls in (
        (samplers.Heun(steps=18, **GRID), 35),
        (samplers.Ddim(steps=18, **GRID), 18),
        (samplers.ConsistencySteps(times=[], sigma_max=80.0, sigma_data=SD), 1),
        (samplers.ConsistencySteps(times=[1.1], sigma_max=80.0, sigma_data=SD), 2),
    ):
        made = []

        def net(x, t, label=None, made=made):
            made.append(float(t[0]))
            return DATA.diffusion_net(x, t)

        sampler(net, fixed_noise(), None)
        assert len(made) == calls == sampler.calls
        assert made == sorted(made, reverse=True) and abs(made[0] - 1.56454) < 1e-5


def test_one_step_of_the_exact_consistency_model_is_the_exact_ode():
    noise = fixed_noise()
    one = samplers.ConsistencySteps(times=[], sigma_max=80.0, sigma_data=SD)
    x = one(DATA.consistency_net, noise, None)
    torch.testing.assert_close(x, exact_end(noise), atol=1e-12, rtol=0)


def test_two_steps_of_the_exact_consistency_model_keep_the_datas_distribution():
    noise = fixed_noise(n=20_000)
    two = samplers.ConsistencySteps(times=[1.1], sigma_max=80.0, sigma_data=SD)
    x = two(DATA.consistency_net, noise, None)
    assert abs(float(x.std()) - DATA.s) < 0.01
    assert not torch.allclose(x, exact_end(noise), atol=0.1)  # the noise was drawn again


@pytest.mark.parametrize("times", [[1.1, 1.2], [1.1, 1.1], [1.57], [0.0], [-0.1], [float("nan")]])
def test_times_out_of_order_are_named(times):
    with pytest.raises(ValueError, match="must fall strictly"):
        samplers.ConsistencySteps(times=times, sigma_max=80.0, sigma_data=SD)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.ConsistencySteps(times=[1.1], sigma_max=80.0, sigma_data=SD),
        samplers.FlowSteps(times=[1.1], gamma=0.5, sigma_max=80.0, sigma_data=SD),
        samplers.Ddim(steps=3, **GRID),
        samplers.Heun(steps=3, **GRID),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_call_is_told_the_labels(sampler):
    seen = []

    def net(x, t, label=None, s=None):
        seen.append(label)
        return torch.zeros_like(x), torch.zeros_like(t)

    label = torch.arange(8)
    sampler(net, fixed_noise(), label)
    assert len(seen) == sampler.calls and all(told is label for told in seen)


def test_an_images_noise_has_the_datas_deviation_and_depends_on_its_number_alone():
    given = {"image_shape": (1, 28, 28), "sigma_data": SD}
    whole, part = (samplers.noise_blocks(0, *span, **given) for span in ((0, 130), (63, 70)))
    assert float(whole(0).std()) == pytest.approx(SD, rel=0.01)
    assert torch.equal(part(1), whole(1)[63:70]) and not torch.equal(whole(0), whole(1))
