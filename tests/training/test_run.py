"""Runs from beginning to end: every objective and model, exact resume, signals, failures."""

import json
import os
import signal

import pytest
import torch
from runs import TINY, built, trained, trained_of
from signals import signal_at

from scm.config import compose
from scm.config import metrics as tags
from scm.core.errors import UserError
from scm.evaluation.evaluator import Evaluator
from scm.storage import store
from scm.training.divergence import Diverged

FLOW_MAPS = ["meanflow", "improved_meanflow", "alpha_flow", "align_your_flow", "lmd", "lsd", "psd"]
TWO_STEPS = ("trainer.budget.steps=2", "trainer.log_every=1")


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(TINY) - {"unet_small"}))  # as small, unet is the same
@pytest.mark.parametrize("objective", ["diffusion", "sct", "scd"])
def test_every_objective_trains_every_model(objective, model, teachers, tmp_path):
    if (model, objective) == ("unet_mobile", "sct"):
        pytest.skip("the slowest network: what sct does with it, scd does too")
    teacher = teachers(model)
    if objective == "diffusion":
        metrics = json.loads((teacher / "metrics.json").read_text())
    else:
        needed = (f"objective.teacher={teacher}",) if objective == "scd" else ()
        metrics = trained(
            tmp_path / "run",
            f"objective={objective}",
            *needed,
            *TINY[model],
            *TWO_STEPS,
            teacher=teacher if objective == "scd" else None,
        )
    assert metrics["status"] == "done" and metrics["steps"] == 2 and metrics["images_seen"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ect", "cmt", "discrete_ct", "discrete_cd"])
def test_the_transformer_trains_with_the_other_objectives_too(objective, teachers, tmp_path):
    teacher = teachers("dit")
    names = (f"objective={objective}", f"objective.teacher={teacher}")
    metrics = trained(tmp_path / "run", *names, *TINY["dit"], *TWO_STEPS, teacher=teacher)
    assert metrics["status"] == "done" and metrics["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unet_small", "dit"])
@pytest.mark.parametrize("objective", FLOW_MAPS)
def test_every_flow_map_trains_from_a_teacher_of_one_time(objective, model, teachers, tmp_path):
    """And says the same as the teacher before its first step, whatever s is."""
    teacher = teachers(model)
    names = (f"objective={objective}", f"objective.teacher={teacher}", "objective.init=teacher")
    torch.manual_seed(0)
    parts = built(tmp_path / "run", *names, *TINY[model], *TWO_STEPS, teacher=teacher)
    x, t, s = torch.randn(2, 1, 28, 28), torch.tensor([0.3, 1.2]), torch.tensor([0.1, 0.0])
    with torch.no_grad():
        torch.testing.assert_close(parts.learner.net(x, t, None, s), parts.learner.net(x, t))
    metrics = trained_of(parts)
    assert metrics["status"] == "done" and metrics["steps"] == 2
    assert {"samples/flow_two_step/std", "samples/one_step/std"} <= set(metrics["metrics"])
    assert all(abs(value) < 1e6 for value in metrics["metrics"].values())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "sct"])
def test_the_toy_trains(objective, tmp_path):
    toy = (f"objective={objective}", "data=bimodal", *TINY["mlp"], *TWO_STEPS)
    metrics = trained(tmp_path / "run", *toy)
    assert metrics["status"] == "done"
    assert set(tags.optimised(compose.composed(toy))) <= set(metrics["metrics"])
    measured = {tag for tag in metrics["metrics"] if tag.startswith("eval/toy/")}
    learned, made = {"sct": ("consistency", "one_step"), "diffusion": ("denoiser", "heun")}[
        objective
    ]
    assert measured == {f"eval/toy/{learned}_rms", f"eval/toy/{made}_rms"}
    drawn = {path.name for path in (tmp_path / "run" / "samples").glob("toy_*")}
    assert f"toy_{learned}_00000002.png" in drawn and len(drawn) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_goes_on_exactly(stop_at, tmp_path, monkeypatch):
    """Every tensor and counter of the last checkpoint, and every logged number, bit for bit."""
    run = (*TINY["unet"], "model.dropout=0.2", "objective.tangent_warmup_steps=4")
    run += ("trainer.budget.steps=8", "trainer.save_every=3", "trainer.evaluate_every=100")
    trained(tmp_path / "whole", *run)
    with monkeypatch.context() as context:
        signal_at(stop_at, context)
        metrics = trained(tmp_path / "parts", *run)
    assert metrics["status"] == "stopped" and metrics["steps"] == stop_at + 1
    assert trained(tmp_path / "parts", *run)["status"] == "done"

    ends = [store.newest(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    for end in ends:
        end.pop("counters")  # seconds
    assert store.digest(ends[0]) == store.digest(ends[1])
    logs = [
        [
            {
                key: value
                for key, value in json.loads(line).items()
                if not key.startswith("usage/") and not key.endswith("images_per_second")
            }
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_evaluation_stops_it_and_the_next_run_makes_it(
    number, tmp_path, monkeypatch
):
    def evaluated(self, net, step, *, final):
        os.kill(os.getpid(), number)
        pytest.fail("the evaluation went on")

    path, run = tmp_path / "run", (*TINY["unet_small"], *TWO_STEPS)
    with monkeypatch.context() as context:
        context.setattr(Evaluator, "__call__", evaluated)
        stopped = trained(path, *run)
    assert (stopped["status"], stopped["signal"], stopped["steps"]) == ("stopped", number, 2)
    assert json.loads((path / "metrics.json").read_text()) == stopped
    metrics = trained(path, *run)
    assert (metrics["status"], metrics["steps"]) == ("done", 2) and "eval/loss" in metrics[
        "metrics"
    ]


@pytest.mark.slow
def test_a_run_that_cannot_go_on_has_failed_and_keeps_its_numbers(tmp_path, monkeypatch):
    path, run = tmp_path / "run", (*TINY["unet_small"], "trainer.budget.steps=8")
    with monkeypatch.context() as context:
        signal_at(3, context)
        before = trained(path, *run)
    for file in (path / "checkpoints").glob("step-*"):
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="no whole checkpoint"):
        trained(path, *run)
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["status"] == "failed" and "no whole checkpoint" in metrics["traceback"]
    assert metrics["steps"] == before["steps"] == 4


@pytest.mark.slow
def test_the_seed_decides_the_run(tmp_path):
    run = (*TINY["unet_small"], *TWO_STEPS)
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(tmp_path / name, *run, f"seed={seed}")
        ends.append(store.newest(tmp_path / name / "checkpoints"))
    assert store.digest(ends[0]["net"]) == store.digest(ends[1]["net"])
    assert store.digest(ends[0]["net"]) != store.digest(ends[2]["net"])


@pytest.mark.slow
def test_a_diverging_run_fails_with_its_reason_in_its_folder(tmp_path):
    with pytest.raises(Diverged, match="diverged"):
        trained(
            tmp_path / "run",
            *TINY["unet_small"],
            *("objective=diffusion", "sampler.heun.steps=2", "optimizer.lr=1e30"),
            *("trainer.grad_clip=null", "trainer.log_every=1"),
            *("trainer.lr_warmup_steps=0", "trainer.budget.steps=50"),
        )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "failed" and "Diverged" in metrics["traceback"]
