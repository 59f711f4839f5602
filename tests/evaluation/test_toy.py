"""The toy's errors and pictures, for networks whose error is known; its recipes reach a bound."""

import json

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, smooth_net
from runs import trained

from scm.config import compose as composing
from scm.config.parts import Kind
from scm.evaluation import toy as toys
from scm.evaluation.toy import Toy
from scm.method.samplers import ConsistencySteps, Heun
from scm.method.times import LogNormal
from scm.storage import model as build

SD = 0.5
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": SD}


@pytest.fixture(scope="module")
def dataset():
    return build.dataset(composing.composed(["data=bimodal"]).data)


def toy(dataset, kind):
    return Toy(dataset.exact, "name", kind, seed=0, device=torch.device("cpu"))


draw_times = LogNormal(P_mean=-1.0, P_std=1.4, sigma_data=SD)


def off_by(error, net):
    """The network whose f is everywhere larger by `error`."""

    def moved(x, t, label=None):
        F, w = net(x, t)
        return F - error / (SD * torch.sin(t)).view(-1, 1, 1, 1), w

    return moved


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_errors_of_consistency_functions(dataset, error):
    net = off_by(error, ExactMixture(**vars(dataset.exact)).consistency_net)
    chosen = {
        "one_step": ConsistencySteps(times=[], sigma_max=80.0, sigma_data=SD),
        "two_step": ConsistencySteps(times=[1.1], sigma_max=80.0, sigma_data=SD),
    }
    found = toy(dataset, Kind.consistency).metrics(net, chosen, dataset, draw_times)
    assert set(found) == {"eval/toy/consistency_rms", "eval/toy/one_step_rms"}
    assert list(found.values()) == pytest.approx([error, error], abs=1e-5)


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_errors_of_diffusion_models(dataset, error):
    """The sampler's error on the exact model is its scheme's own, which more steps lessen."""
    net = off_by(error, ExactMixture(**vars(dataset.exact)).diffusion_net)
    chosen = {"coarse": Heun(steps=18, **GRID), "fine": Heun(steps=64, **GRID)}
    found = toy(dataset, Kind.velocity).metrics(net, chosen, dataset, draw_times)
    assert found["eval/toy/denoiser_rms"] == pytest.approx(error, abs=1e-5)
    if error == 0:
        assert found["eval/toy/fine_rms"] < 0.002 < 0.02 < found["eval/toy/coarse_rms"]


def test_the_exact_mixture_is_the_data_sets(dataset):
    """Quantiles of 100,000 draws against the closed form's distribution function."""
    x0 = dataset.test_batch(100_000).x0.flatten().double().sort().values
    uniform = torch.exp(dataset.exact._log_cdf(x0, torch.zeros_like(x0)))
    expected = torch.linspace(0, 1, len(x0), dtype=torch.float64)
    assert (uniform - expected).abs().max() < 0.01


@pytest.mark.pictures
@pytest.mark.parametrize("kind", [Kind.velocity, Kind.consistency])
def test_pictures(dataset, kind, monkeypatch):
    monkeypatch.setattr(toys, "TIMES", 24)
    monkeypatch.setattr(toys, "PLACES", 24)
    drawn = toy(dataset, kind).pictures(smooth_net)
    learns = "toy_denoiser" if kind is Kind.velocity else "toy_consistency"
    assert list(drawn) == ["toy_trajectories", learns, "toy_tangent"]
    for name, picture in drawn.items():
        assert picture.shape == (400, 1000 if name == "toy_trajectories" else 1500, 3)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


QUICK_TOY = ("trainer.precision=fp32", "trainer.threads=1", "trainer.log_every=100")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "metric", "bound", "steps"),
    [("toy_diffusion", "denoiser_rms", 0.02, 900), ("toy_sct", "consistency_rms", 0.06, 400)],
)
def test_a_part_of_the_budget_reaches_a_bound_and_the_error_falls(
    recipe, metric, bound, steps, tmp_path
):
    short = ("trainer=default", f"experiment={recipe}", *QUICK_TOY)
    budget = (f"trainer.budget.steps={steps}", f"trainer.evaluate_every={steps // 2}")
    budget += ("trainer.batch_size=256",)
    warmup = ("trainer.lr_warmup_steps=50",)
    warmup += ("objective.tangent_warmup_steps=100",) if recipe == "toy_sct" else ()
    trained(tmp_path / "run", *short, *budget, *warmup)
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    errors = [r[f"eval/toy/{metric}"] for r in records if f"eval/toy/{metric}" in r]
    assert len(errors) == 2 and errors[1] < bound and errors[1] < errors[0]
    pictures = {path.name for path in (tmp_path / "run" / "samples").glob(f"toy_*_{steps:08d}.png")}
    assert len(pictures) == 3
