"""A loss or gradient that is not finite: skipped, counted, and the end of a run when it lasts."""

import json
import math
import os
import signal

import pytest
import torch
from runs import TINY, built, trained, trained_of

from scm.data.bimodal import Bimodal
from scm.storage import store
from scm.training import divergence
from scm.training.learner import Skipped

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
    saved = store.newest(tmp_path / "run" / "checkpoints")
    assert saved["skipped"] == {"total": 2, "in_a_row": 0}
    assert int(saved["optimizer"]["state"][0]["step"]) == 3


@pytest.mark.slow
def test_a_loss_that_is_finite_with_a_gradient_that_is_not(tmp_path):
    parts = built(tmp_path / "run", *TOY, "trainer.budget.steps=2")
    net = parts.learner.net
    first = next(p for p in net.parameters() if p.requires_grad)
    first.register_hook(lambda gradient: gradient * math.inf)
    before = store.digest(dict(net.state_dict()))
    assert trained_of(parts)["skipped_steps"] == 2
    assert store.digest(dict(net.state_dict())) == before


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


def test_the_dump_names_the_samples_and_the_message_the_rate(tmp_path):
    """In a run whose last two steps were skipped; the rate is the one that training used."""
    parts = built(
        tmp_path / "run",
        *(*TINY["unet_small"], "optimizer.lr=0.125", "trainer.max_skipped_steps=2"),
    )
    learner, task, file = parts.learner, parts.task, tmp_path / "diverged.json"
    learner.step = 7
    learner.skipped = Skipped.on(torch.device("cpu"), 2, 1)
    divergence.check(learner, task, file)  # not too many yet
    assert not file.exists()
    learner.skipped = Skipped.on(torch.device("cpu"), 2, 2)
    with pytest.raises(divergence.Diverged, match=r"lower optimizer\.lr=0\.125 or"):
        divergence.check(learner, task, file)
    steps = json.loads(file.read_text())["steps"]
    assert [one["step"] for one in steps] == [6, 7]
    draw = steps[1]
    x0, _ = task.dataset.batch(0, 6, 8)
    assert torch.equal(task.dataset.train[draw["indices"]].float() / 255 - 0.5, x0)
    assert draw["t"] == task.draw(6).t.tolist()


@pytest.mark.slow
def test_the_counts_go_on_after_a_stop(nan_at, tmp_path):
    """Two skipped before the stop and one after it are three in a row."""
    run = (*TOY, "trainer.budget.steps=20", "trainer.max_skipped_steps=3")
    nan_at(3, 4, 5, stop_at=4)
    assert trained(tmp_path / "run", *run)["status"] == "stopped"
    with pytest.raises(divergence.Diverged, match="at step 6"):
        trained(tmp_path / "run", *run)
