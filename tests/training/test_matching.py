"""Distribution matching in a run: the score network's steps, its checkpoint, its wiring."""

import json

import pytest
import torch
from runs import TINY, built, trained, trained_of
from signals import signal_at

from scm.core.errors import UserError
from scm.storage import store
from scm.training.divergence import Diverged
from scm.training.loop import train_steps

TOY = ("data=bimodal", *TINY["mlp"], "matching=dmd", "trainer.batch_size=64")
EXACT = (*TOY, "objective/velocity@matching.velocity=exact")
DIGITS = (*TINY["unet_small"], "objective=scd", "matching=dmd")


def steps_of(parts, count):
    steps = train_steps(parts.learner, parts.task, lambda: 0.0, parts.score)
    return [next(steps) for _ in range(count)]


def test_the_score_network_starts_as_the_teacher_and_both_move(models, tmp_path):
    teacher = models / "teacher"
    parts = built(tmp_path / "run", *DIGITS, f"objective.teacher={teacher}", teacher=teacher)
    matching = parts.task.objective.matching
    assert matching.score is parts.score.net
    theirs = matching.velocity.teacher
    assert theirs is parts.task.objective.velocity.teacher and not theirs.training
    before = {name: w.clone() for name, w in theirs.state_dict().items()}
    for name, weight in parts.score.net.state_dict().items():
        assert torch.equal(weight, before[name])
    (record,) = steps_of(parts, 1)
    assert parts.score.net.training
    moved = [not torch.equal(w, before[n]) for n, w in parts.score.net.state_dict().items()]
    assert any(moved) and all(torch.equal(w, before[n]) for n, w in theirs.state_dict().items())
    assert {"matching/gap", "score/loss", "score/grad_norm"} <= record.scalars.keys()
    assert all(parameter.grad is None for parameter in theirs.parameters())


def test_the_score_network_takes_its_own_steps_at_its_own_rate(tmp_path):
    own = ("matching.score_steps=3", "matching.optimizer.lr=0.007", "trainer.lr_warmup_steps=0")
    parts = built(tmp_path / "run", *EXACT, *own)
    steps_of(parts, 2)
    assert (parts.learner.step, parts.score.step) == (2, 6)
    assert parts.score.optimizer.param_groups[0]["lr"] == pytest.approx(0.007)
    assert parts.learner.optimizer.param_groups[0]["lr"] == pytest.approx(parts.learner.lr)


def test_each_turn_has_noise_of_its_own_with_the_datas_deviation(tmp_path):
    task = built(tmp_path / "run", *EXACT, "trainer.batch_size=4096").task
    draws = [task.draw(3).own, task.own_draw(3, 1), task.own_draw(3, 2), task.own_draw(4, 1)]
    assert all(draw.noise.shape == (4096, 2, 1, 1, 1) for draw in draws)
    for draw in draws:
        for noise in (draw.z, draw.noise[:, 0], draw.noise[:, 1]):
            assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    flat = torch.stack([n.flatten() for d in draws for n in (d.z, d.noise[:, 0], d.noise[:, 1])])
    assert float((torch.corrcoef(flat) - torch.eye(12)).abs().max()) < 0.1
    tau = torch.log(0.5 * torch.tan(draws[0].t))
    assert float(tau.mean()) == pytest.approx(-0.4, abs=0.1)  # its own times, not the objective's
    assert torch.equal(task.draw(3).own.noise, draws[0].noise)


def test_a_run_without_it_draws_nothing_for_it(tmp_path):
    parts = built(tmp_path / "run", *TOY, "matching=none")
    assert parts.score is None and parts.task.draw(0).own is None


@pytest.mark.slow
def test_matching_alone_brings_samples_to_the_data(tmp_path):
    """A student that starts as noise of its own: the toy's two modes, by the exact velocity."""
    run = ("matching.weight=100", "optimizer.lr=1e-3", "matching.optimizer.lr=1e-3")
    run += ("matching.calls_at=[]", "trainer.lr_warmup_steps=20", "matching.score_steps=2")
    run += ("trainer.batch_size=256", "model.width=64", "matching.times.P_mean=-1")
    parts = built(tmp_path / "run", *EXACT, *run, "objective.times.P_mean=-1")
    steps_of(parts, 400)
    noise = parts.task.dataset.batch(1, 0, 4096)[0]
    gen = torch.Generator().manual_seed(0)
    noise = 0.5 * torch.randn(noise.shape, generator=gen)
    with torch.no_grad():
        t = torch.full((len(noise),), parts.task.objective.matching.calls_at[0])
        F, _ = parts.learner.net(noise / 0.5, t)
        x = torch.cos(t[:, None, None, None]) * noise - torch.sin(t[0]) * 0.5 * F
    data = parts.task.dataset.batch(2, 0, 4096)[0]
    mine, theirs = (part.flatten().sort().values for part in (x, data))
    assert float((mine - theirs).abs().mean()) < 0.1  # Wasserstein; of noise it is 0.25
    assert float((noise.flatten().sort().values - theirs).abs().mean()) > 0.1


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly_with_its_score_network(tmp_path, monkeypatch):
    run = (*EXACT, "trainer.budget.steps=6", "trainer.save_every=2", "trainer.log_every=1")
    trained(tmp_path / "whole", *run)
    with monkeypatch.context() as context:
        signal_at(3, context)
        assert trained(tmp_path / "parts", *run)["status"] == "stopped"
    assert trained(tmp_path / "parts", *run)["status"] == "done"
    ends = [store.newest(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    for end in ends:
        end.pop("counters")  # seconds
    assert store.digest(ends[0]) == store.digest(ends[1])
    assert ends[0]["score"]["step"] == 6 and ends[0]["score"]["optimizer"]["state"]
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    logged = [record for record in map(json.loads, lines) if "score/loss" in record]
    assert len(logged) == 6
    assert not any("tangent/growth" in record for record in logged)  # nobody watches here


def test_a_branch_takes_the_score_network_along(tmp_path):
    run = (*EXACT, "trainer.evaluate_every=100")
    trained(tmp_path / "trunk", *run, "trainer.budget.steps=2")
    trunk = tmp_path / "trunk" / "checkpoints" / "step-00000002.pt"
    more = (f"trainer.branch={trunk}", "trainer.budget.steps=3", "matching.optimizer.lr=5e-4")
    parts = built(tmp_path / "branch", *run, *more)
    saved = store.read(trunk)["score"]
    assert parts.score.step == 2 and parts.score.lr == 5e-4
    for name, weight in parts.score.net.state_dict().items():
        assert torch.equal(weight, saved["net"][name])


def test_a_score_network_that_diverges_ends_the_run_by_its_name(tmp_path):
    run = (*EXACT, "trainer.max_skipped_steps=2", "trainer.budget.steps=9")
    parts = built(tmp_path / "run", *run)
    with torch.no_grad():
        parts.score.net.stem.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match=r"the score network's loss .* matching.optimizer.lr="):
        trained_of(parts)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("objective=diffusion", *TOY), "matching: objective=diffusion makes no samples in one"),
        ((*TOY, "objective.teacher=null"), "objective.teacher=null: matching.velocity is that"),
        ((*TOY, "objective/velocity@matching.velocity=pair"), "matching.velocity=.*Pair"),
        ((*TOY, "objective/velocity@matching.velocity=own"), "matching.velocity=.*Own"),
        (("matching=dmd", "objective/velocity@matching.velocity=exact"), "Exact: only data=bimo"),
        ((*EXACT, "objective/times@matching.times=any_pair"), "matching.times=.*AnyPair"),
        ((*EXACT, "matching.calls_at=[1.0,1.2]"), r"matching: calls_at=\[1.0, 1.2\]: must fall"),
        ((*EXACT, "matching.weight=0"), "matching.weight=0: must be"),
        ((*EXACT, "matching.score_steps=0"), "matching.score_steps=0: must be"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(overrides, said, tmp_path):
    with pytest.raises(UserError, match=said):
        built(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()
