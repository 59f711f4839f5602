"""The parts of a run fit each other, or are named before anything is written."""

import json
import shutil

import pytest
import torch
from runs import TINY, built, trained
from signals import signal_at

from scm.core.errors import UserError
from scm.data.dataset import to_float
from scm.evaluation import pictures
from scm.evaluation.evaluator import Evaluation
from scm.storage import store

TWO_STEPS = ("trainer.budget.steps=2", "trainer.log_every=1")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=bimodal"], r"images \(1, 1, 1\): this UNet needs"),
        (["model.num_classes=7"], "model.num_classes=7: mnist has 10 classes"),
        (["sampler=multi_step", "sampler.multi_step.times=[1,1.2]"], "must fall strictly"),
        (["data.sigma_data=0.3"], r"data.sigma_data=0.3: mnist measures 0.481"),
        (["trainer.device=mps"], "trainer.device=mps: not on this machine"),
        (["model.norm=batch"], "model.norm='batch'"),
        (["optimizer._target_=scm.data.dataset.copy.copy"], "refused, there is no such class"),
        (["optimizer._target_=scm.data.dataset.Tensor"], "a target must be a class of scm"),
        (["optimizer._target_=scm.data.images.IdxImages"], "refused, not a Optimizer"),
    ],
)
def test_parts_that_do_not_fit_are_named_and_nothing_is_written(overrides, said, tmp_path):
    with pytest.raises(UserError, match=said):
        built(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_conditional_model_trains_and_starts_from_another_run(tmp_path):
    conditional = (*TINY["unet"], "model.num_classes=10", *TWO_STEPS)
    trained(tmp_path / "first", *conditional)
    second = built(tmp_path / "second", *conditional, f"objective.init={tmp_path / 'first'}")
    weights, _ = store.read_weights(tmp_path / "first")
    assert all(
        torch.equal(value, weights[name]) for name, value in second.learner.net.state_dict().items()
    )
    with pytest.raises(UserError, match=r"model.num_classes=10, this run has 0"):
        built(tmp_path / "third", *TINY["unet"], f"objective.init={tmp_path / 'first'}")


@pytest.mark.slow
def test_a_consistency_model_is_no_teacher_and_another_network_does_not_fit(teachers, tmp_path):
    trained(tmp_path / "sct", *TINY["unet_small"], *TWO_STEPS)
    scd = ("objective=scd", f"objective.teacher={tmp_path / 'sct'}", *TINY["unet_small"])
    with pytest.raises(UserError, match="learns consistency, so it is not a velocity"):
        built(tmp_path / "run", *scd, teacher=tmp_path / "sct")
    teacher = teachers("unet_small")
    with pytest.raises(UserError, match="its weights are of another network"):
        built(
            tmp_path / "run",
            *("objective=scd", f"objective.teacher={teacher}", *TINY["unet_attention"]),
            teacher=teacher,
        )
    same_shapes = "model.time_embedding.c_noise=log"
    with pytest.raises(UserError, match=r"c_noise=t, and this run has log.*objective.init=null"):
        built(
            tmp_path / "run",
            *("objective=scd", f"objective.teacher={teacher}"),
            *TINY["unet_small"],
            same_shapes,
            teacher=teacher,
        )


@pytest.mark.slow
def test_a_run_goes_on_with_the_very_teacher_that_it_began_with(teachers, tmp_path, monkeypatch):
    teacher, path = tmp_path / "teacher.safetensors", tmp_path / "run"
    weights, config = store.read_weights(teachers("unet_small"))
    store.save_weights(teacher, weights, config)
    run = ("objective=scd", f"objective.teacher={teacher}", *TINY["unet_small"])
    run += ("trainer.budget.steps=4",)
    with monkeypatch.context() as context:
        signal_at(1, context)
        sources = trained(path, *run, teacher=teacher)["sources"]
    digest = store.weights_digest(weights)
    assert sources == {"teacher": {"path": str(teacher), "weights_sha256": digest}}
    built(path, *run, teacher=teacher)
    next(iter(weights.values())).add_(1)
    store.save_weights(teacher, weights, config)
    with pytest.raises(UserError, match=f"objective.teacher at {teacher} has other weights now"):
        built(path, *run, teacher=teacher)


@pytest.mark.slow
def test_an_unfinished_teacher_is_named(teachers, tmp_path, caplog):
    teacher = tmp_path / "teacher"
    shutil.copytree(teachers("unet_small"), teacher)
    run = ("objective=scd", f"objective.teacher={teacher}", *TINY["unet_small"])
    built(tmp_path / "run", *run, teacher=teacher)
    assert "not done" not in caplog.text
    metrics = json.loads((teacher / "metrics.json").read_text())
    (teacher / "metrics.json").write_text(json.dumps({**metrics, "status": "stopped"}))
    built(tmp_path / "run", *run, teacher=teacher)
    (record,) = [r for r in caplog.records if "not done" in r.getMessage()]
    assert record.getMessage() == f"objective.teacher={teacher}: that run is stopped, not done"


@pytest.mark.slow
def test_the_student_starts_from_the_teacher(teachers, tmp_path):
    teacher = teachers("unet_small")
    run = ("objective=scd", f"objective.teacher={teacher}", *TINY["unet_small"])
    student = built(tmp_path / "run", *run, teacher=teacher)
    weights, _ = store.read_weights(teacher)
    assert all(
        torch.equal(value, weights[name])
        for name, value in student.learner.net.state_dict().items()
    )
    fresh = built(tmp_path / "run", *run, "objective.init=null", teacher=teacher)
    assert store.digest(dict(fresh.learner.net.state_dict())) != store.digest(
        dict(student.learner.net.state_dict())
    )


@pytest.mark.parametrize(
    ("objective", "drawn"),
    [
        ("sct", ["mean squared error"]),
        ("diffusion", ["mean squared error", "1 / learned weight"]),
    ],
)
def test_a_learned_weight_is_drawn_where_there_is_one(objective, drawn, tmp_path, monkeypatch):
    parts = built(tmp_path / "run", f"objective={objective}", *TINY["unet_small"])
    monkeypatch.setattr(pictures, "curves", lambda _, lines, **__: lines)
    result = Evaluation()
    with torch.no_grad():
        parts.evaluator._loss_over_noise(parts.learner.ema.net, 0, result)
    assert list(result.pictures["loss_over_noise"]) == drawn


def test_the_mean_velocity_is_over_the_training_images_and_the_toy_has_none(tmp_path):
    mean = ("objective=sct", "objective/velocity=data_mean", "objective.velocity.points=50")
    parts = built(tmp_path / "run", *TINY["unet_small"], *mean)
    velocity, dataset = parts.task.objective.velocity, parts.task.dataset
    assert torch.equal(velocity.x0, to_float(dataset.train[:50]))
    assert torch.equal(velocity.labels, dataset.train_labels[:50])
    with pytest.raises(UserError, match=r"data.name=bimodal: draws its samples without end"):
        built(tmp_path / "toy", "data=bimodal", *TINY["mlp"], *mean)
