"""A loss or gradient that is not finite: skipped, counted, and the end of a run when it lasts."""

import json
import math
import os
import signal

import pytest
import torch
from runs import TINY, built, trained
from torch import nn

from scm import checkpoint, divergence, train
from scm.data import Bimodal
from scm.ema import Ema

TOY = ("data=bimodal", *TINY["mlp"], "trainer.evaluate_every=1000", "trainer.log_every=1")


@pytest.fixture
def nan_at(monkeypatch):
    """Let the training data of some steps (0, 1, ...) be NaN; SIGTERM comes in step `stop_at`."""

    def install(*steps, stop_at=None):
        def batch(self, seed, k, batch_size):
            if k == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            x0, labels = original(self, seed, k, batch_size)
            return x0 * (math.nan if k in steps else 1), labels

        monkeypatch.setattr(Bimodal, "batch", batch)

    original = Bimodal.batch
    return install


def state_of(net, optimizer):
    return train.TrainState(net, Ema(net), optimizer, train.Skipped.on(torch.device("cpu")))


def step(state, gradient, *, finite):
    for parameter in state.net.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    train.take_step(state, torch.tensor(finite), 0.5)


def contents(state):
    parts = (state.net.state_dict(), state.ema.net.state_dict(), state.optimizer.state_dict())
    return checkpoint.digest([dict(part) for part in parts])


@pytest.mark.parametrize("by_itself", [False, True], ids=["flag read", "flag on the device"])
def test_a_skipped_step_changes_weights_optimiser_and_ema_by_no_bit(by_itself, monkeypatch):
    """Both ways on a CPU, where fused AdamW knows found_inf too."""
    monkeypatch.setattr(train, "skips_by_itself", lambda optimizer, device: by_itself)

    def start():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        return state_of(net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=True))

    state, never_skipped = start(), start()
    for one in (state, never_skipped):
        step(one, 0.3, finite=True)
    before = contents(state)
    step(state, math.nan, finite=False)
    step(state, math.inf, finite=False)
    assert contents(state) == before
    assert (int(state.skipped.total), int(state.skipped.in_a_row)) == (2, 2)

    for one in (state, never_skipped):
        step(one, -0.7, finite=True)
    assert contents(state) == contents(never_skipped) != before
    assert (int(state.skipped.total), int(state.skipped.in_a_row)) == (2, 0)


def test_the_optimisers_that_skip_by_themselves():
    """RAdam has no fused kernel; a CPU reads the flag at no cost."""
    parameters = [nn.Parameter(torch.ones(2))]
    fused = torch.optim.AdamW(parameters, fused=True)
    assert train.skips_by_itself(fused, torch.device("cuda"))
    assert not train.skips_by_itself(fused, torch.device("cpu"))
    assert not train.skips_by_itself(torch.optim.RAdam(parameters), torch.device("cuda"))


def test_the_emas_two_ways_agree():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    one, other = Ema(net), Ema(net)
    with torch.no_grad():
        net.weight.add_(torch.randn(2, 3))
    one.update(0.9)
    other.update_where(torch.tensor(True), 0.9)
    torch.testing.assert_close(one.net.weight, other.net.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_run_skips_counts_and_goes_on(nan_at, tmp_path):
    """Steps 2 and 3 of 5 are skipped; no record holds a number that is not finite."""
    nan_at(1, 2)
    metrics = trained(tmp_path / "run", *TOY, "trainer.budget.steps=5", "trainer.log_every=2")
    assert (metrics["status"], metrics["skipped_steps"]) == ("done", 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    skipped = {r["step"]: r["train/skipped_steps"] for r in records if "train/loss" in r}
    assert skipped == {2: 1, 4: 2}
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved["skipped"] == {"total": 2, "in_a_row": 0}
    assert int(saved["optimizer"]["state"][0]["step"]) == 3


@pytest.mark.slow
def test_a_loss_that_is_finite_with_a_gradient_that_is_not(tmp_path):
    experiment = built(tmp_path / "run", *TOY, "trainer.budget.steps=2")
    first = next(p for p in experiment.net.parameters() if p.requires_grad)
    first.register_hook(lambda gradient: gradient * math.inf)
    before = checkpoint.digest(dict(experiment.net.state_dict()))
    with experiment.folder.open({}):
        assert experiment.run()["skipped_steps"] == 2
    assert checkpoint.digest(dict(experiment.net.state_dict())) == before


def test_too_many_in_a_row_end_the_run_with_a_dump(nan_at, tmp_path):
    nan_at(1, 3, 4, 5)
    run = (*TOY, "trainer.budget.steps=20", "trainer.max_skipped_steps=3")
    with pytest.raises(divergence.Diverged, match=r"not finite in 3 steps in a row, at step 6"):
        trained(tmp_path / "run", *run)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "failed" and "diverged.json" in metrics["traceback"]

    text = (tmp_path / "run" / "diverged.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["step"], found["skipped_steps"], found["skipped_in_a_row"]) == (6, 4, 3)
    assert [one["step"] for one in found["steps"]] == [4, 5, 6]
    last = found["steps"][-1]
    assert len(last["t"]) == 8 and all(0 < t < math.pi / 2 for t in last["t"])
    assert last["loss"] == ["nan"] * 8 and last["indices"] is None
    assert set(last["gradient_norms"].values()) == {"nan"}
    assert all(isinstance(norm, float) for norm in found["weight_norms"].values())


def test_the_dump_names_the_samples(tmp_path):
    experiment = built(tmp_path / "run", *TINY["unet_small"])
    experiment.state.step = 7
    experiment.state.skipped = train.Skipped.on(torch.device("cpu"), 2, 2)
    experiment.folder.path.mkdir()
    experiment._dump()
    steps = json.loads((tmp_path / "run" / "diverged.json").read_text())["steps"]
    assert [one["step"] for one in steps] == [6, 7]
    dataset, draw = experiment.dataset, steps[1]
    x0, _ = dataset.batch(0, 6, 8)
    assert torch.equal(dataset.train[draw["indices"]].float() / 255 - 0.5, x0)
    whole = train.draw_for_step(
        experiment.objective, dataset, seed=0, step=6, batch_size=8, labels=False
    )
    assert draw["t"] == whole.t.tolist()


@pytest.mark.slow
def test_the_counts_go_on_after_a_stop(nan_at, tmp_path):
    """Two skipped before the stop and one after it are three in a row."""
    run = (*TOY, "trainer.budget.steps=20", "trainer.max_skipped_steps=3")
    nan_at(3, 4, 5, stop_at=4)
    assert trained(tmp_path / "run", *run)["status"] == "stopped"
    with pytest.raises(divergence.Diverged, match="at step 6"):
        trained(tmp_path / "run", *run)
