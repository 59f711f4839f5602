"""`python -m scm.evaluate` and `scm.results`, end to end on tiny models and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, small_quality, trained

from scm import build, checkpoint, evaluate, results, sample, subjects
from scm.errors import UserError
from scm.samplers import ConsistencySteps, Heun, noise_blocks
from scm.tags import QUALITY

TWO_STEPS = (*TINY["unet_small"], "trainer.budget.steps=2", "trainer.log_every=1")
SMALL = ("-n", "30", "--seeds", "2", "--precision", "fp32")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return small_quality(tmp_path_factory.mktemp("cache"), train=300, test=100)


@pytest.fixture(autouse=True)
def small(judge, monkeypatch):
    """A judge with few real images, and few to compare with the teacher's."""
    monkeypatch.setattr(build, "quality", lambda *_: judge)
    monkeypatch.setattr(subjects, "TEACHER_IMAGES", 8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "teacher"
    trained(path, "objective=diffusion", "sampler.heun.steps=2", *TWO_STEPS)
    return path


@pytest.fixture(scope="module")
def student(teacher):
    path = teacher.parent / "student"
    trained(path, "objective=scd", f"objective.teacher={teacher}", *TWO_STEPS, teacher=teacher)
    return path


def read(file):
    return json.loads(file.read_text())


def failure(arguments, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ")
    return error


@pytest.mark.slow
def test_a_run_is_measured_with_all_its_samplers(student, teacher, judge, capsys):
    evaluate.main([str(student), *SMALL])
    files = sorted(path.name for path in (student / "evaluation").iterdir())
    assert files == ["one_step-n30.json", "two_step-n30.json"]
    result = read(student / "evaluation" / "two_step-n30.json")
    assert set(result["metrics"]) == set(result["floor"]) == set(QUALITY)
    distance = result["metrics"]["frechet_distance"]
    assert len(distance["values"]) == 2 and distance["values"][0] != distance["values"][1]
    assert distance["mean"] == pytest.approx(np.mean(distance["values"]))
    assert distance["std"] == pytest.approx(np.std(distance["values"], ddof=1))
    assert (result["n"], result["seeds"], result["calls"]) == (30, [0, 1], 2)
    assert result["features"]["sha256"] == judge.network.sha256
    assert result["data"] == {"name": "mnist", "sha256": judge.data_sha256}
    assert result["sampler"]["two_step"]["times"] == [1.1] and result["objective"] == "SCD"
    weights, config = checkpoint.read_weights(student)
    assert result["weights_sha256"] == checkpoint.weights_digest(weights)
    assert result["config_sha256"] == checkpoint.digest(config)
    assert {"git_commit", "versions", "device", "precision", "seconds"} <= set(result)
    assert result["teacher"]["model"] == str(teacher) and result["teacher"]["images"] == 8
    shown = capsys.readouterr().out
    assert "frechet_distance" in shown and "rms from the teacher" in shown
    assert "exists; name another file" in failure([student, *SMALL], capsys)

    capsys.readouterr()
    results.main([str(student)])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4 and rows[0].startswith("| model | sampler | calls | FD |")
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    assert rows[3].startswith("| student | two_step | 2 |") and " ± " in rows[3]


@pytest.mark.slow
def test_the_distance_from_the_teacher_is_between_the_same_noises_images(student, teacher):
    """Computed here by hand, from the two networks and one noise."""
    cpu = torch.device("cpu")
    machine = subjects.Machine(cpu, torch.float32, 256)
    first, second = subjects.subjects_of(student, None, 10, 1, machine)
    found = first.facts()["teacher"]
    nets = [build.trained_network(path, cpu, torch.float32) for path in (student, teacher)]
    noise = noise_blocks(0, 0, 8, image_shape=(1, 28, 28), sigma_data=0.5)
    grid = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}
    with torch.no_grad():
        mine = ConsistencySteps(times=[], sigma_max=80.0, sigma_data=0.5)(nets[0].net, noise, None)
        theirs = Heun(steps=18, **grid)(nets[1].net, noise, None)
    rms = float((mine - theirs).square().mean().sqrt())
    assert found["rms"] == pytest.approx(rms, rel=1e-5) and rms > 0.01
    assert found["calls"] == 35 and second.facts()["teacher"] == found


@pytest.mark.slow
def test_a_lost_teacher_is_no_failure(student, tmp_path):
    moved = tmp_path / "mine.safetensors"
    weights, config = checkpoint.read_weights(student)
    config["objective"]["teacher"] = "outputs/lost"
    checkpoint.save_weights(moved, weights, config)
    evaluate.main([str(moved), *SMALL, "--sampler", "one_step"])
    assert "teacher" not in read(tmp_path / "mine-one_step-n30.json")


@pytest.mark.slow
def test_samplers_with_changed_values_have_their_own_files(teacher):
    chosen = ["--sampler", "heun", "steps=2", "--sampler", "ddim", "steps=3", "rho=5.0"]
    evaluate.main([str(teacher), *SMALL, *chosen])
    heun, ddim = (
        read(teacher / "evaluation" / f"{name}-n30.json")
        for name in ("heun-steps-2", "ddim-steps-3-rho-5.0")
    )
    assert (heun["title"], heun["calls"], ddim["calls"]) == ("heun steps=2", 3, 3)
    assert "teacher" not in heun


@pytest.mark.slow
def test_an_npz_file_gives_what_its_model_gives(teacher, tmp_path, capsys):
    out = tmp_path / "samples.npz"
    drawn = ["--sampler", "heun", "steps=2", "-n", "30", "--seed", "1", "--precision", "fp32"]
    sample.main([str(teacher), *drawn, "--out", str(out)])
    model = tmp_path / "model.json"
    evaluate.main([str(out)])
    evaluate.main([str(teacher), *SMALL, "--sampler", "heun", "steps=2", "--out", str(model)])
    from_file, from_model = read(tmp_path / "samples-n30.json"), read(model)
    assert from_file["seeds"] == [1] and from_file["calls"] == 3
    assert from_file["weights_sha256"] == from_model["weights_sha256"]
    assert "leave --seeds away" in failure([out, "--seeds", "2", "--overwrite"], capsys)
    for name in QUALITY:
        both = from_file["metrics"][name], from_model["metrics"][name]
        assert both[0]["mean"] == pytest.approx(both[1]["values"][1], rel=1e-9)
        assert both[0]["std"] is None
    assert "300" not in results.table([from_file])


@pytest.mark.slow
def test_mistakes_are_one_line_before_any_work(teacher, tmp_path, capsys):
    text = tmp_path / "text.npz"
    text.write_text("not an npz file")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, images=np.zeros((20, 28, 28), np.uint8))
    for arguments, said in (
        ([tmp_path / "none"], "no such file or folder"),
        ([teacher, "-n", "9"], "-n 9: must be at least 10"),
        ([teacher, "--seeds", "0"], "--seeds 0: must be at least 1"),
        ([teacher, "--sampler", "magic"], "--sampler magic: unknown"),
        ([teacher, teacher, "-n", "10"], "would hold several results"),
        ([teacher, "-n", "10", "--out", tmp_path / "no" / "x.json"], "there is no folder"),
        ([text], "no samples that `python -m scm.sample` wrote"),
        ([foreign], "no samples that `python -m scm.sample` wrote"),
        ([foreign, "--sampler", "heun"], "holds samples already"),
    ):
        assert said in failure(arguments, capsys)


def result_of(**more):
    measured = {name: {"mean": 2.0, "std": 0.5, "values": [1.5, 2.5]} for name in QUALITY}
    return {
        **{"model": "outputs/a/checkpoints/ema.safetensors", "title": "two_step", "calls": 2},
        **{"n": 10_000, "seeds": [0, 1], "metrics": measured, "floor": dict.fromkeys(QUALITY, 0.5)},
        **{"data": {"sha256": "d"}, "features": {"sha256": "f"}},
        **more,
    }


def test_the_results_table_is_markdown():
    heads, _, row = results.table([result_of()]).splitlines()
    cells = dict(zip(heads.split(" | "), row.split(" | "), strict=True))
    assert cells["FD"] == "2.00 ± 0.50" and cells["FD / floor"] == "4.0" and cells["n"] == "10,000"
    assert row.startswith("| a | two_step | 2 |")
    for model, shown in (
        ("outputs/b", "b"),
        ("outputs/lr0.1", "lr0.1"),
        ("outputs/b/checkpoints/step-00000009.pt", "b step-00000009"),
        ("pretrained/mnist_scd.safetensors", "mnist_scd"),
    ):
        assert results.row(result_of(model=model))[0] == shown


def test_results_of_former_weights_are_named(tmp_path, monkeypatch, caplog):
    """In the run's own folder, which was moved since, and beside a file of weights."""
    monkeypatch.chdir(tmp_path)
    weights = {"w": torch.ones(2)}
    then = checkpoint.weights_digest(weights)
    for model in (tmp_path / "run" / "checkpoints" / "ema.safetensors", tmp_path / "m.safetensors"):
        model.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(model, weights, {})
    (tmp_path / "run" / "evaluation").mkdir()
    files = ("run/evaluation/a-n10.json", "m-a-n10.json")
    for file, name in zip(files, ("gone/run", "m.safetensors"), strict=True):
        (tmp_path / file).write_text(json.dumps(result_of(model=name, weights_sha256=then)))
    results.main(list(files))
    assert not caplog.records
    checkpoint.save_weights(tmp_path / "m.safetensors", {"w": torch.zeros(2)}, {})
    results.main(list(files))
    (record,) = caplog.records
    said = "m-a-n10.json: measured other weights than m.safetensors has now"
    assert record.getMessage().startswith(said)
    checkpoint.save_weights(tmp_path / "run/checkpoints/ema.safetensors", {"w": torch.zeros(2)}, {})
    results.main(["run"])
    assert "`python -m scm.evaluate run --overwrite`" in caplog.records[-1].getMessage()
    arguments = evaluate.parser().parse_args(["run"])
    with pytest.raises(UserError, match="the weights of run have changed since; add --overwrite"):
        evaluate._check_files([Path(files[0])], arguments)


def test_results_that_cannot_be_compared_are_refused(tmp_path, capsys):
    for name, features in (("a", "f"), ("b", "other")):
        (tmp_path / name).write_text(
            json.dumps(result_of(model=name, features={"sha256": features}))
        )
    (tmp_path / "c").write_text("{}")
    (tmp_path / "d").mkdir()
    for names, said in (
        ("ab", "different features.sha256, no comparison: a, b"),
        ("c", "not a result of scm.evaluate"),
        ("d", "no results there"),
        ("e", "not a result of scm.evaluate"),
    ):
        with pytest.raises(SystemExit) as ended:
            results.main([str(tmp_path / name) for name in names])
        assert ended.value.code == 2 and said in capsys.readouterr().err
