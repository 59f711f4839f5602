"""Runs from beginning to end: every objective and model, exact resume, what is left."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from runs import TINY, built, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scm import build, checkpoint, composing, pictures, tags
from scm.data import IdxImages
from scm.divergence import Diverged
from scm.errors import UserError
from scm.evaluator import Evaluation, Evaluator
from scm.tags import is_better

TWO_STEPS = ("trainer.budget.steps=2", "trainer.log_every=1")


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """A diffusion run of two steps for every model, made when first asked for."""
    made = {}

    def teacher(model):
        if model not in made:
            made[model] = tmp_path_factory.mktemp("teachers") / model
            trained(
                made[model], "objective=diffusion", "sampler.heun.steps=2", *TINY[model], *TWO_STEPS
            )
        return made[model]

    return teacher


@pytest.mark.slow
@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize("objective", ["diffusion", "sct", "scd"])
def test_every_objective_trains_every_model(objective, model, teachers, tmp_path):
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
    assert all(abs(value) < 1e6 for value in metrics["metrics"].values())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "sct"])
def test_the_toy_trains(objective, tmp_path):
    toy = (f"objective={objective}", "data=bimodal", *TINY["mlp"], *TWO_STEPS)
    metrics = trained(tmp_path / "run", *toy)
    assert metrics["status"] == "done"
    assert set(metrics["metrics"]) == set(tags.available(composing.composed(toy)))
    measured = {tag for tag in metrics["metrics"] if tag.startswith("eval/toy/")}
    learned, made = {"sct": ("consistency", "one_step"), "diffusion": ("denoiser", "heun")}[
        objective
    ]
    assert measured == {f"eval/toy/{learned}_rms", f"eval/toy/{made}_rms"}
    drawn = {path.name for path in (tmp_path / "run" / "samples").glob("toy_*")}
    assert f"toy_{learned}_00000002.png" in drawn and len(drawn) == 3


@pytest.mark.slow
def test_a_conditional_model_trains_and_starts_from_another_run(tmp_path):
    conditional = (*TINY["unet"], "model.num_classes=10", *TWO_STEPS)
    trained(tmp_path / "first", *conditional)
    second = built(tmp_path / "second", *conditional, f"objective.init={tmp_path / 'first'}")
    weights, _ = checkpoint.read_weights(tmp_path / "first")
    assert all(torch.equal(value, weights[name]) for name, value in second.net.state_dict().items())
    with pytest.raises(UserError, match=r"model.num_classes=10, this run has 0"):
        built(tmp_path / "third", *TINY["unet"], f"objective.init={tmp_path / 'first'}")


def signal_at(step, monkeypatch):
    """Send this process SIGTERM while the batch of `step` is fetched."""
    original = IdxImages.batch

    def batch(self, seed, k, batch_size):
        if k == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, seed, k, batch_size)

    monkeypatch.setattr(IdxImages, "batch", batch)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_goes_on_exactly(stop_at, tmp_path, monkeypatch):
    """Every tensor and counter of the last checkpoint, and every logged number, bit for bit."""
    run = (*TINY["unet"], "objective.dropout=0.2", "objective.tangent_warmup_steps=4")
    run += ("trainer.budget.steps=8", "trainer.save_every=3", "trainer.evaluate_every=100")
    trained(tmp_path / "whole", *run)
    with monkeypatch.context() as context:
        signal_at(stop_at, context)
        metrics = trained(tmp_path / "parts", *run)
    assert metrics["status"] == "stopped" and metrics["steps"] == stop_at + 1
    assert trained(tmp_path / "parts", *run)["status"] == "done"

    ends = [checkpoint.newest(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    for end in ends:
        end.pop("counters")  # seconds
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])
    logs = [
        [
            {
                key: value
                for key, value in json.loads(line).items()
                if "perf" not in key and "/s" not in key
            }
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    strip = [
        [{k: v for k, v in r.items() if "images_per_second" not in k} for r in log] for log in logs
    ]
    assert strip[0] == strip[1]


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
        ends.append(checkpoint.newest(tmp_path / name / "checkpoints"))
    assert checkpoint.digest(ends[0]["net"]) == checkpoint.digest(ends[1]["net"])
    assert checkpoint.digest(ends[0]["net"]) != checkpoint.digest(ends[2]["net"])


@pytest.mark.slow
def test_what_a_run_leaves(tmp_path):
    path = tmp_path / "run"
    metrics = trained(path, *TINY["unet_small"])
    wanted = {
        *("status", "objective", "seed", "steps", "images_seen", "seconds", "images_per_second"),
        *("peak_memory_bytes", "parameters", "git_commit", "versions", "device", "metrics"),
    }
    assert wanted <= set(metrics) and json.loads((path / "metrics.json").read_text()) == metrics
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 6, 8, 12, 12]
    pictures = {p.name for p in (path / "samples").iterdir()}
    assert pictures == {
        f"{name}_{step:08d}.png"
        for name in ("one_step", "two_step", "denoising_strip", "loss_over_noise")
        for step in (6, 12)
    }
    trained_net = build.trained_network(
        path / "checkpoints" / "ema.safetensors", torch.device("cpu"), torch.float32
    )
    from_folder = build.trained_network(path, torch.device("cpu"), torch.float32)
    assert checkpoint.digest(dict(trained_net.net.state_dict())) == checkpoint.digest(
        dict(from_folder.net.state_dict())
    )


def test_better_is_lower_but_for_the_metrics_that_say_otherwise():
    assert is_better("eval/loss", 1.0, None) and is_better("eval/loss", 1.0, 2.0)
    assert not is_better("eval/loss", 2.0, 1.0) and not is_better("eval/loss", 1.0, 1.0)
    assert is_better("quality/one_step/recall", 0.5, 0.4)
    assert not is_better("quality/one_step/recall", 0.4, 0.5)
    assert not is_better("eval/loss", math.nan, None) and not is_better("eval/loss", -math.inf, 1.0)


@pytest.mark.slow
def test_the_best_evaluations_weights_are_kept(tmp_path, monkeypatch):
    """Losses 3, 1, 2 at steps 2, 4, 6: the weights of step 4, also after a stop at step 5."""

    def evaluated(self, net, step, *, final):
        seen[step] = checkpoint.digest(dict(sorted(net.state_dict().items())))
        return Evaluation(metrics={"eval/loss": {2: 3.0, 4: 1.0, 6: 2.0}[step]})

    seen = {}
    monkeypatch.setattr(Evaluator, "__call__", evaluated)
    run = (*TINY["unet_small"], "trainer.budget.steps=6", "trainer.evaluate_every=2")
    with monkeypatch.context() as context:
        signal_at(4, context)
        trained(tmp_path / "run", *run)
    metrics = trained(tmp_path / "run", *run)
    assert metrics["best"] == {"step": 4, "metric": "eval/loss", "value": 1.0}
    weights, _ = checkpoint.read_weights(tmp_path / "run" / "checkpoints" / checkpoint.BEST_FILE)
    assert checkpoint.digest(dict(sorted(weights.items()))) == seen[4] != seen[6]


@pytest.mark.slow
def test_tensorboard_shows_scalars_pictures_config_and_hparams_in_one_run(tmp_path):
    trained(tmp_path / "run", *TINY["unet_small"])
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()
    assert {"train/loss", "tangent/rms", "perf/images_per_second", "eval/loss"} <= set(
        tags["scalars"]
    )
    assert {tag.split("/")[0] for tag in tags["scalars"]} == {"train", "tangent", "perf", "eval"}
    assert set(tags["images"]) == {
        f"samples/{n}" for n in ("one_step", "two_step", "denoising_strip", "loss_over_noise")
    }
    assert tags["tensors"] == ["config/text_summary"]
    assert (
        "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


@pytest.mark.slow
def test_a_diverging_run_fails_with_its_reason_in_its_folder(tmp_path):
    with pytest.raises(Diverged, match="diverged"):
        trained(
            tmp_path / "run",
            *TINY["unet_small"],
            *("objective=diffusion", "sampler.heun.steps=2", "objective.lr=1e30"),
            *("trainer.grad_clip=null", "trainer.log_every=1"),
            *("trainer.lr_warmup_steps=0", "trainer.budget.steps=50"),
        )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "failed" and "Diverged" in metrics["traceback"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=bimodal"], r"images \(1, 1, 1\): this UNet needs"),
        (["model.num_classes=7"], "model.num_classes=7: mnist has 10 classes"),
        (["sampler=multi_step", "sampler.multi_step.times=[1,1.2]"], "must fall strictly"),
        (["data.sigma_data=0.3"], r"data.sigma_data=0.3: mnist measures 0.481"),
        (["trainer.device=mps"], "trainer.device=mps: not on this machine"),
        (["model.norm=batch"], "model.norm='batch'"),
        (["optimizer._target_=scm.data.copy.copy"], "refused, there is no such class"),
        (["optimizer._target_=scm.data.Tensor"], "outside this project"),
        (["optimizer._target_=scm.data.IdxImages"], "refused, not a Optimizer"),
    ],
)
def test_parts_that_do_not_fit_are_named_and_nothing_is_written(overrides, said, tmp_path):
    with pytest.raises(UserError, match=said):
        built(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_consistency_model_is_no_teacher_and_another_network_does_not_fit(teachers, tmp_path):
    trained(tmp_path / "sct", *TINY["unet_small"], *TWO_STEPS)
    scd = ("objective=scd", f"objective.teacher={tmp_path / 'sct'}", *TINY["unet_small"])
    with pytest.raises(UserError, match="a consistency model, so not a velocity"):
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
    weights, config = checkpoint.read_weights(teachers("unet_small"))
    checkpoint.save_weights(teacher, weights, config)
    run = ("objective=scd", f"objective.teacher={teacher}", *TINY["unet_small"])
    run += ("trainer.budget.steps=4",)
    with monkeypatch.context() as context:
        signal_at(1, context)
        sources = trained(path, *run, teacher=teacher)["sources"]
    digest = checkpoint.weights_digest(weights)
    assert sources == {"teacher": {"path": str(teacher), "weights_sha256": digest}}
    built(path, *run, teacher=teacher)
    next(iter(weights.values())).add_(1)
    checkpoint.save_weights(teacher, weights, config)
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


@pytest.mark.parametrize(
    ("objective", "drawn"),
    [
        ("sct", ["mean squared error"]),
        ("diffusion", ["mean squared error", "1 / learned weight"]),
    ],
)
def test_a_learned_weight_is_drawn_where_there_is_one(objective, drawn, tmp_path, monkeypatch):
    experiment = built(tmp_path / "run", f"objective={objective}", *TINY["unet_small"])
    monkeypatch.setattr(pictures, "curves", lambda _, lines, **__: lines)
    result = Evaluation()
    with torch.no_grad():
        experiment.evaluator._loss_over_noise(experiment.state.ema.net, 0, result)
    assert list(result.pictures["loss_over_noise"]) == drawn


@pytest.mark.slow
def test_the_student_starts_from_the_teacher(teachers, tmp_path):
    teacher = teachers("unet_small")
    run = ("objective=scd", f"objective.teacher={teacher}", *TINY["unet_small"])
    student = built(tmp_path / "run", *run, teacher=teacher)
    weights, _ = checkpoint.read_weights(teacher)
    assert all(
        torch.equal(value, weights[name]) for name, value in student.net.state_dict().items()
    )
    fresh = built(tmp_path / "run", *run, "objective.init=null", teacher=teacher)
    assert checkpoint.digest(dict(fresh.net.state_dict())) != checkpoint.digest(
        dict(student.net.state_dict())
    )
