"""The watch over the tangent: silent while it is sound, loud where a level outgrows its past."""

import json
import math

import pytest
import torch
from runs import trained

from scm.training.watch import LEVELS, LIMIT, Watch, by_noise, levels

TOY = ("data=bimodal", "model=mlp", "trainer.batch_size=64", "trainer.lr_warmup_steps=5")
ONCE = ("trainer.evaluate_every=1000", "trainer.save_every=1000")


def test_by_noise_takes_the_levels_apart():
    """sigma = sigma_data tan(t): one sample at the middle of each level, two in the first."""
    t = torch.atan(torch.tensor([0.01, 0.02, 0.1, 0.5, 2.0, 9.0]))
    means = by_noise(torch.tensor([1.0, 7.0, 2.0, 3.0, 4.0, 5.0]), t)
    found = levels({"train/loss": 1.0, **{tag: float(value) for tag, value in means.items()}})
    rms = [found[f"tangent_by_noise/{name}"] for name in LEVELS]
    assert rms == pytest.approx([5.0, 2.0, 3.0, 4.0, 5.0])  # sqrt((1 + 49) / 2) is 5
    assert set(found) == {"train/loss", *(f"tangent_by_noise/{name}" for name in LEVELS)}


def test_a_level_without_samples_has_no_rms():
    means = by_noise(torch.ones(2), torch.atan(torch.tensor([0.5, 0.6])))
    assert list(levels({tag: float(v) for tag, v in means.items()})) == ["tangent_by_noise/up_to_1"]


def watched(sizes, r=lambda step: 1.0, level=2):
    """A watch after steps whose tangent has these sizes at one level, and 1 r at the others."""
    watch = Watch(torch.device("cpu"))
    t = torch.atan(torch.tensor([0.01, 0.1, 0.5, 2.0, 9.0]))
    for step, size in enumerate(sizes, 1):
        rms = torch.full((len(LEVELS),), r(step))
        rms[level] = size
        scalars = {**by_noise(rms, t), "tangent/r": torch.tensor(r(step))}
        watch.add(step, scalars, torch.tensor(True))
    return watch


def test_growth_in_proportion_to_r_is_sound():
    """As in distillation, where the tangent at r is about r times that at 1."""
    watch = watched([min(1, k / 80) for k in range(1, 161)], r=lambda step: min(1.0, step / 80))
    assert 1 <= float(watch.growth.max()) < 1.3 and watch.alarm(1e-4) == ""


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_growth_at_one_level_is_seen_and_named(level):
    watch = watched([1.0] * 60 + [4.0] * 60, level=level)
    assert 60 < int(watch.broke_at) < 80
    assert float(watch.growth.max()) == pytest.approx(4, rel=0.1)
    alarm = watch.alarm(3e-4)
    assert LEVELS[level].replace("_", " ") in alarm and "optimizer.lr=0.0003" in alarm


def test_less_than_the_limit_is_no_alarm():
    assert watched([1.0] * 60 + [0.9 * LIMIT] * 200).alarm(1e-4) == ""
    assert watched([1.0] * 60 + [1.1 * LIMIT] * 200).alarm(1e-4) != ""


def test_a_skipped_step_counts_nothing():
    watch = watched([1.0] * 60)
    before = watch.state_dict()
    t = torch.atan(torch.full((5,), 0.5))
    bad = {**by_noise(torch.full((5,), math.nan), t), "tangent/r": torch.tensor(1.0)}
    watch.add(61, bad, torch.tensor(False))
    assert torch.equal(watch.means, before["means"])
    assert watch.growth.isfinite().all()


def test_a_run_made_to_break_is_seen_and_recorded(tmp_path, caplog):
    """The toy, distilled at too high a rate with momentum; at a thirtieth nothing is said."""
    teacher = tmp_path / "teacher"
    trained(
        teacher,
        *("objective=diffusion", *TOY, *ONCE, "optimizer.lr=3e-3", "trainer.budget.steps=200"),
    )
    found = {}
    for rate in (1e-3, 3e-2):
        caplog.clear()
        trained(
            folder := tmp_path / str(rate),
            *("objective=scd", f"objective.teacher={teacher}", *TOY, *ONCE, f"optimizer.lr={rate}"),
            *("objective/tangent=none", "objective.tangent_warmup_steps=20"),
            *("optimizer.betas=[0.9,0.99]", "trainer.budget.steps=120", "trainer.log_every=5"),
            *("trainer.lr_decay_fraction=0", "trainer.grad_clip=1"),
            teacher=teacher,
        )
        said = [m for m in caplog.messages if "training begins to break" in m]
        metrics = json.loads((folder / "metrics.json").read_text())
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        growth = [record["tangent/growth"] for record in records if "tangent/growth" in record]
        found[rate] = len(said), metrics["broke_at"], max(growth)
    assert found[1e-3][:2] == (0, None) and found[1e-3][2] < LIMIT
    assert found[3e-2][0] == 1 and 20 < found[3e-2][1] <= 120 and found[3e-2][2] > LIMIT
