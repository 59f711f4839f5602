"""What the method's yaml say, beside what their sources say: a slip of the pen changes a method."""

import pytest
import yaml
from runs import composed_once

from scm.config.compose import CONF
from scm.config.read import flatten, plain

PAPER = {  # Lu & Song 2025, Karras et al. 2022; what differs from them here is CHOSEN
    "data.sigma_data": 0.5,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "model.dropout": 0.0,
    "model.norm": "double",
    "model.time_embedding.c_noise": "t",
    "weighting._target_": "scm.method.weighting.Unit",
    "sampler.one_step.sigma_max": 80.0,
    "sampler.one_step.times": [],
    "sampler.two_step.sigma_max": 80.0,
    "sampler.two_step.times": [1.1],
    "objective.derivative._target_": "scm.method.derivative.Jvp",
    "objective.init": "teacher",
    "objective.tangent._target_": "scm.method.tangent.Normalize",
    "objective.tangent.c": 0.1,
}
CHOSEN = {  # docs/lab-notes.md, docs/stability.md
    "objective.times.P_mean": -1.5,
    "objective.times.P_std": 2.0,
    "objective.adaptive_weight": False,
    "objective.tangent.norm": "rms",
    "optimizer.lr": 2e-4,
    "optimizer.betas": [0.0, 0.99],
    "trainer.batch_size": 128,
    "trainer.grad_clip": None,
    "trainer.ema_sigma_rel": 0.063,
}
DIFFUSION = {
    "objective.velocity._target_": "scm.method.velocity.Pair",
    "objective.times.P_mean": -1.2,
    "objective.times.P_std": 1.4,
    "objective.adaptive_weight": True,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.lr": 1e-3,
    "sampler.heun.steps": 18,
    "sampler.heun.sigma_min": 0.002,
    "sampler.heun.sigma_max": 80.0,
    "sampler.heun.rho": 7.0,
    "weighting._target_": "scm.method.weighting.Unit",
    "model.dropout": 0.0,
}
CONSISTENCY = PAPER | CHOSEN
VALUES = {
    "sct": {**CONSISTENCY, "objective.velocity._target_": "scm.method.velocity.Pair"},
    "scd": {**CONSISTENCY, "objective.velocity._target_": "scm.method.velocity.Teacher"},
    "diffusion": DIFFUSION,
}

METHOD = "scm.method"
EULERIAN = {"objective._target_": f"{METHOD}.objective.Eulerian"}
MEANFLOW = EULERIAN | {  # field settings of the official code on CIFAR-10
    "objective.velocity._target_": f"{METHOD}.velocity.Pair",
    "objective.times._target_": f"{METHOD}.times.TwoLogNormals",
    "objective.times.P_mean": -0.6,
    "objective.times.P_std": 1.6,
    "objective.times.second_P_mean": -4.0,
    "objective.times.second_P_std": 1.6,
    "objective.times.diagonal": 0.25,
    "objective.tangent._target_": f"{METHOD}.tangent.Power",
    "objective.tangent.c": 1e-3,
    "objective.tangent.norm": "l2",
    "objective.learns": "flow_map",
    "model.second_time": True,
}
JVP = {"objective.derivative._target_": f"{METHOD}.derivative.Jvp"}
ANY_S = {
    "objective.times._target_": f"{METHOD}.times.AnyPair",
    "objective.learns": "flow_map",
    "model.second_time": True,
}
OWN = {"objective.velocity._target_": f"{METHOD}.velocity.Own"}
TEACHER = {"objective.velocity._target_": f"{METHOD}.velocity.Teacher"}
LAGRANGIAN = ANY_S | {"objective._target_": f"{METHOD}.objective.Lagrangian"}
VALUES |= {
    "meanflow": MEANFLOW | JVP | {"objective.tangent.p": 0.75, "objective.direction": None},
    "improved_meanflow": MEANFLOW
    | JVP
    | {"objective.direction._target_": f"{METHOD}.velocity.Own"},
    "alpha_flow": MEANFLOW
    | {
        "objective.derivative._target_": f"{METHOD}.derivative.Annealed",
        "objective.derivative.sharpness": 25.0,
        "objective.derivative.clamp": 0.005,
        "objective.tangent.p": 1.0,
    },
    "align_your_flow": EULERIAN | ANY_S | JVP | TEACHER,
    "lmd": LAGRANGIAN | TEACHER,
    "lsd": LAGRANGIAN | OWN,
    "psd": ANY_S | OWN | {"objective._target_": f"{METHOD}.objective.Semigroup"},
    "ect": EULERIAN
    | {
        "objective.velocity._target_": f"{METHOD}.velocity.Pair",
        "objective.derivative._target_": f"{METHOD}.derivative.Shrinking",
        "objective.derivative.first": 0.5,
        "objective.derivative.k": 8.0,
        "objective.derivative.b": 1.0,
        "objective.tangent._target_": f"{METHOD}.tangent.Power",
        "objective.tangent.p": 0.5,
        "objective.times.P_mean": -1.1,
        "objective.times.P_std": 2.0,
        "objective.learns": "consistency",
    },
    "cmt": TEACHER
    | {
        "objective._target_": f"{METHOD}.objective.Endpoint",
        "objective.steps": 16,
        "objective.learns": "consistency",
        "optimizer.lr": 2e-4,
    },
}


@pytest.mark.parametrize("objective", VALUES)
def test_a_method_is_what_its_sources_say(objective):
    flat = flatten(plain(composed_once((f"objective={objective}",))))
    assert {key: flat.get(key) for key in VALUES[objective]} == VALUES[objective]


@pytest.mark.parametrize("optimizer", ["adamw", "radam", "muon"])
def test_an_optimizer_leaves_rate_and_betas_to_the_objective(optimizer):
    """A value of its own would stand twice, and count wherever an objective forgot it."""
    own = yaml.safe_load((CONF / "optimizer" / f"{optimizer}.yaml").read_text())
    assert own["lr"] == own["betas"] == "???"


def test_the_discrete_ablation_is_the_papers_and_the_discrete_objective_is_songs():
    for overrides, rule in (
        (("ablation=discrete_64",), "lu_song"),
        (("objective=discrete_ct",), "song"),
    ):
        assert flatten(plain(composed_once(overrides)))["objective.derivative.rule"] == rule
