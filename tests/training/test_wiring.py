"""The wires between the parts of a step: each test fails for a fault in the line that calls."""

import math
from dataclasses import replace

import pytest
import torch
from runs import TINY, built, composed_once, trained_of

from scm.config.compose import composed
from scm.core import machine, rng
from scm.core.errors import UserError
from scm.evaluation.evaluator import Evaluation, Evaluator
from scm.method import schedules
from scm.storage import store
from scm.storage.model import load
from scm.training.assemble import _check_form
from scm.training.loop import train_steps

SMALL = ("data=bimodal", *TINY["mlp"], "trainer.batch_size=64")


def steps_of(parts, count, progress=lambda: 0.0):
    steps = train_steps(parts.learner, parts.task, progress)
    return [next(steps) for _ in range(count)]


def test_a_steps_noise_has_the_datas_deviation_and_a_stream_of_its_own(tmp_path):
    task = built(tmp_path / "run", *SMALL, "trainer.batch_size=4096").task
    draw = task.draw(3)
    assert float(draw.z.std()) == pytest.approx(task.objective.sigma_data, rel=0.05)
    times = rng.generator(task.seed, "times", 3, device="cpu")
    expected = task.objective.draw_times(4096, generator=times, device="cpu")
    torch.testing.assert_close(draw.t, expected, rtol=0, atol=0)
    tau = torch.log(task.objective.sigma_data * torch.tan(draw.t))
    correlation = torch.corrcoef(torch.stack([tau, draw.z.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.1  # one stream for both would make them the same numbers
    assert not torch.equal(draw.z, task.draw(4).z) and not torch.equal(draw.t, task.draw(4).t)


def test_the_rate_follows_its_schedule_and_the_warm_up_of_the_tangent_its_step(tmp_path):
    more = ("trainer.lr_warmup_steps=4", "objective.tangent_warmup_steps=2")
    parts = built(tmp_path / "run", *SMALL, *more)
    records = steps_of(parts, 3, progress=lambda: 0.9)
    peak, fraction = parts.config.optimizer.lr, parts.config.trainer.lr_decay_fraction
    for step, record in enumerate(records):
        factor = schedules.lr_factor(step, 0.9, warmup_steps=4, decay_fraction=fraction)
        assert 0 < factor < 1 and record.learning_rate == pytest.approx(peak * factor)
    assert parts.learner.optimizer.param_groups[0]["lr"] == records[-1].learning_rate
    assert [float(record.scalars["tangent/r"]) for record in records] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("clip", [1e-4, None])
def test_gradients_are_clipped_where_a_limit_is_given(clip, tmp_path):
    limit = "null" if clip is None else clip
    parts = built(tmp_path / "run", *SMALL, f"trainer.grad_clip={limit}")
    (record,) = steps_of(parts, 1)
    grads = [p.grad for p in parts.learner.net.parameters() if p.grad is not None]
    norm = float(torch.stack([grad.norm() for grad in grads]).norm())
    before = float(record.scalars["train/grad_norm"])
    assert before > 1e-3 and norm == pytest.approx(before if clip is None else clip, rel=1e-3)


def test_the_average_follows_the_weights_by_its_decay(tmp_path):
    parts = built(tmp_path / "run", *SMALL)
    steps_of(parts, 1)  # the first takes over the weights
    before = [p.clone() for p in parts.learner.ema.net.parameters()]
    (record,) = steps_of(parts, 1)
    assert 0 < record.ema_decay < 1
    for old, now, net in zip(
        before, parts.learner.ema.net.parameters(), parts.learner.net.parameters(), strict=True
    ):
        expected = record.ema_decay * old + (1 - record.ema_decay) * net
        torch.testing.assert_close(now, expected.detach())


def test_the_seed_decides_the_first_weights(tmp_path):
    first, again, other = (
        built(tmp_path / name, *SMALL, f"seed={seed}").learner.net.stem.weight
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_averaged_network_is_what_is_evaluated_and_kept(tmp_path):
    parts = built(tmp_path / "run", *SMALL, "trainer.budget.steps=5", "optimizer.lr=1e-2")
    seen = []

    class Seeing(Evaluator):
        def __call__(self, net, step, *, final):
            seen.append(net)
            return Evaluation()

    seeing = Seeing(**vars(parts.evaluator))
    trained_of(replace(parts, evaluator=seeing))
    assert all(net is parts.learner.ema.net for net in seen) and seen
    kept, _ = store.read_weights(tmp_path / "run")
    average = parts.learner.ema.net.state_dict()
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert not torch.equal(kept["stem.weight"], parts.learner.net.stem.weight)


def test_held_out_images_bring_their_labels_where_the_network_takes_them(tmp_path):
    t = torch.linspace(0.1, 1.5, 8)
    conditional = built(tmp_path / "a", *SMALL, "model.num_classes=2").evaluator
    assert set(conditional._noised(8, t).label.tolist()) <= {0, 1}
    assert built(tmp_path / "b", *SMALL).evaluator._noised(8, t).label is None


def test_a_steps_gradients_are_its_own(tmp_path):
    """At a rate that moves nothing, the second step's are those of a run that takes it alone."""
    whole, alone = (built(tmp_path / name, *SMALL, "optimizer.lr=1e-30") for name in ("a", "b"))
    alone.learner.step = 1
    steps_of(whole, 2)
    steps_of(alone, 1)
    grads = [[p.grad for p in parts.learner.net.parameters()] for parts in (whole, alone)]
    assert any(grad is not None and bool(grad.any()) for grad in grads[0])
    for mine, its in zip(*grads, strict=True):
        assert (mine is None) == (its is None)
        torch.testing.assert_close(mine, its)


def test_dropout_acts_while_training_with_other_masks_each_step(tmp_path):
    parts = built(tmp_path / "run", *SMALL, "model.dropout=0.5")
    assert not parts.learner.net.train(False).training
    masks = []
    dropout = next(m for m in parts.learner.net.modules() if isinstance(m, torch.nn.Dropout))
    dropout.register_forward_hook(lambda module, given, out: masks.append((out == 0).clone()))
    steps_of(parts, 2)
    assert parts.learner.net.training and not parts.learner.ema.net.training
    first, second = masks
    assert 0.3 < float(first.float().mean()) < 0.7 and not torch.equal(first, second)


def test_labels_reach_the_network_and_a_unconditional_one_gets_none(tmp_path):
    conditional = built(tmp_path / "a", *SMALL, "model.num_classes=2").task.draw(0)
    assert conditional.label is not None and set(conditional.label.tolist()) == {0, 1}
    assert built(tmp_path / "b", *SMALL).task.draw(0).label is None


def test_the_teacher_is_the_trained_one_at_rest(models, tmp_path):
    """In eval mode, without gradients, and the student starts as it."""
    more = (
        *TINY["unet_small"],
        "objective=scd",
        "objective.init=teacher",
        f"objective.teacher={models / 'teacher'}",
    )
    parts = built(tmp_path / "run", *more, teacher=models / "teacher")
    teacher = parts.task.objective.velocity.teacher
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    for mine, theirs in zip(parts.learner.net.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("objective", "rate", "betas", "proposal"),
    [
        ("diffusion", 1e-3, [0.9, 0.99], (-1.2, 1.4)),
        ("sct", 2e-4, [0.0, 0.99], (-1.5, 2.0)),
        ("scd", 2e-4, [0.0, 0.99], (-1.5, 2.0)),
        ("discrete_ct", 2e-4, [0.0, 0.99], (-1.5, 2.0)),
        ("discrete_cd", 2e-4, [0.0, 0.99], (-1.5, 2.0)),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "radam", "muon"])
def test_an_objective_sets_rate_betas_and_proposal_whatever_the_optimiser(
    objective, rate, betas, proposal, optimizer
):
    """docs/configuration.md names these values; a slip of a sign in a yaml shows here."""
    config = composed([f"objective={objective}", f"optimizer={optimizer}"])
    times = config.objective.times
    assert (config.optimizer.lr, config.optimizer.betas) == (rate, betas)
    assert (times.P_mean, times.P_std) == proposal


def test_the_optimiser_gets_what_the_config_says(tmp_path):
    given = ("optimizer.betas=[0.3,0.7]", "optimizer.eps=1e-5", "optimizer.weight_decay=0.1")
    optimizer = built(tmp_path / "run", *SMALL, *given, "optimizer.lr=0.01").learner.optimizer
    found = {key: optimizer.defaults[key] for key in ("betas", "eps", "weight_decay", "lr")}
    assert found == {"betas": (0.3, 0.7), "eps": 1e-5, "weight_decay": 0.1, "lr": 0.01}


def test_muon_gets_what_the_config_says(tmp_path):
    given = ("optimizer=muon", "optimizer.momentum=0.7", "optimizer.betas=[0.3,0.7]")
    parts = built(tmp_path / "run", *SMALL, *given, "optimizer.lr=0.01", "trainer.precision=bf16")
    matrices, others = parts.learner.optimizer.param_groups
    assert (matrices["momentum"], others["betas"], matrices["lr"]) == (0.7, (0.3, 0.7), 0.01)
    assert {p.ndim for p in matrices["params"]} == {2} and {p.ndim for p in others["params"]} == {1}
    assert len([*matrices["params"], *others["params"]]) == len([*parts.learner.net.parameters()])
    assert parts.learner.optimizer.dtype == torch.bfloat16
    before = [p.detach().clone() for p in parts.learner.net.parameters()]
    steps_of(parts, 2)
    now = parts.learner.net.parameters()
    assert {p.ndim for p, old in zip(now, before, strict=True) if not torch.equal(p, old)} == {1, 2}


def test_the_split_form_is_refused_where_torch_mixes_types(tmp_path, monkeypatch):
    """On a GPU in 16 bits; nothing is moved there before."""
    monkeypatch.setattr(machine, "find_device", lambda choice: torch.device("cuda"))
    monkeypatch.setattr(machine, "find_dtype", lambda choice, device: torch.bfloat16)
    split = (*SMALL, "objective=sct", "objective.init=null", "objective.derivative.form=split")
    with pytest.raises(UserError, match=r"objective\.derivative\.form=split: .*form=dual"):
        built(tmp_path / "run", *split)
    with pytest.raises(UserError, match=r"objective\.form=split: .*form=dual"):
        built(tmp_path / "run", *SMALL, "objective=lsd", "objective.form=split")
    monkeypatch.setattr(machine, "find_device", lambda choice: torch.device("cpu"))
    built(tmp_path / "run", *SMALL, "objective=lsd", "objective.form=split")
    objective = composed(["objective=lsd", "objective.form=split"]).objective
    _check_form(objective, torch.device("cuda"), torch.float32)


def test_a_key_of_the_objective_cannot_disagree_with_the_optimisers():
    with pytest.raises(Exception, match=r"lr stands at optimizer\.lr"):
        composed_once(("objective.lr=1e-4",))


def test_a_guided_teacher_is_the_teacher_moved_away_from_its_guide(models, tmp_path):
    teacher = models / "teacher"
    more = (*TINY["unet_small"], "objective=scd", "objective/velocity=guided")
    more += (f"objective.teacher={teacher}", f"objective.velocity.guide={teacher}")
    strength = ("objective.velocity.guidance=2.5", "objective.velocity.below=1.5")
    parts = built(tmp_path / "run", *more, *strength, teacher=teacher)
    guided = parts.task.objective.velocity.teacher
    assert guided.t_below == pytest.approx(math.atan(1.5 / 0.5))
    assert guided.guidance == 2.5 and guided.net is not guided.guide
    assert not any(p.requires_grad for p in guided.parameters()) and not guided.guide.training
    assert parts.sources[f"guide {teacher}"] == parts.sources["teacher"]
    with pytest.raises(UserError, match=r"guide=.*learns consistency, so it is not a velocity"):
        built(tmp_path / "no", *more, f"objective.velocity.guide={models / 'sct'}", teacher=teacher)
    with pytest.raises(UserError, match=r"objective.velocity.guide=nowhere: no such file"):
        built(tmp_path / "no", *more, "objective.velocity.guide=nowhere", teacher=teacher)


def test_a_conditional_network_starts_as_an_unconditional_one(models, tmp_path):
    """Which says the same for every class, and learns to differ."""
    more = (*TINY["unet_small"], "objective=diffusion", "model.num_classes=10")
    parts = built(tmp_path / "run", *more, f"objective.init={models / 'teacher'}", "optimizer.lr=1")
    x, t = torch.randn(3, 1, 28, 28), torch.tensor([0.3, 0.8, 1.2])
    start = parts.learner.net.eval()
    plain = load(models / "teacher", torch.device("cpu"), torch.float32).net
    with torch.no_grad():
        torch.testing.assert_close(start(x, t, torch.arange(3)), plain(x, t))
    steps_of(parts, 1)
    assert parts.learner.net.conditioning.label.weight.abs().max() > 0
