"""`python -m scm evaluate` and `scm.commands.results`, end to end on tiny models and files."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scm.commands import evaluate, results, sample
from scm.config.metrics import QUALITY
from scm.core.errors import UserError
from scm.storage import samples
from scm.storage import store as checkpoint
from scm.storage.model import load

SMALL = ("-n", "30", "--seeds", "2", "--precision", "fp32")


@pytest.fixture(autouse=True)
def small(judge, monkeypatch):
    """A judge with few real images."""
    monkeypatch.setattr(evaluate, "quality_of", lambda *_: judge)


@pytest.fixture
def teacher(models, tmp_path):
    return shutil.copytree(models / "teacher", tmp_path / "teacher")


@pytest.fixture
def student(models, tmp_path):
    return shutil.copytree(models / "student", tmp_path / "student")


def read(file):
    return json.loads(file.read_text())


def failure(arguments, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and error.startswith("error: ")
    return error


def test_a_guided_model_is_moved_below_the_level_asked_for(models):
    teacher = load(models / "teacher", torch.device("cpu"), torch.float32)
    net = teacher.guided_by(teacher, 2.5, 1.5).net
    assert net.guidance == 2.5 and net.t_below == pytest.approx(math.atan(1.5 / 0.5))


@pytest.mark.slow
def test_a_guided_model_is_measured_and_says_by_what(teacher, models, capsys, tmp_path):
    """As itself at guidance 1, as something else above; a file of its samples says the same."""
    one = ("-n", "30", "--precision", "fp32", "--sampler", "heun", "steps=2")
    weaker, everywhere = ("--guide", models / "teacher"), ("--guidance-below", "inf")
    drawn = [*one, "--seed", "0", "--guidance", "3", *everywhere, "--out", tmp_path / "x.npz"]
    sample.main([str(word) for word in [teacher, *weaker, *drawn]])
    for guidance in ("1", "3"):
        more = [teacher, *one, "--seeds", "1", *weaker, "--guidance", guidance, *everywhere]
        evaluate.main([str(word) for word in more])
    evaluate.main([str(word) for word in [teacher, *one, "--seeds", "1", *weaker]])  # as in conf
    evaluate.main([str(word) for word in [teacher, *one, "--seeds", "1"]])
    evaluate.main([str(tmp_path / "x.npz")])
    folder = teacher / "evaluation"
    alone = read(folder / "heun-steps-2-n30.json")
    same, far = (read(folder / f"heun-steps-2-guided-{w}-n30.json") for w in (1, 3))
    of_file = read(tmp_path / "x-n30.json")
    by_default = read(folder / "heun-steps-2-guided-2-below-2-n30.json")["guide"]
    assert (by_default["guidance"], by_default["below"], far["guide"]["below"]) == (2, 2, None)
    assert alone["guide"] is None and alone["calls"] == 3
    assert far["calls"] == of_file["calls"] == 6
    assert far["guide"] == of_file["guide"]
    assert far["guide"]["guidance"] == 3 and far["guide"]["path"] == str(models / "teacher")
    assert far["guide"]["weights_sha256"] == far["weights_sha256"] == alone["weights_sha256"]
    distances = [r["metrics"]["frechet_distance"]["mean"] for r in (alone, same, far, of_file)]
    assert distances[0] == pytest.approx(distances[1]) and distances[2] == distances[3]


@pytest.mark.slow
def test_a_run_is_measured_with_all_its_samplers(student, judge, capsys):
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
    assert result["sampler"]["two_step"]["times"] == [1.1] and result["objective"] == "scd"
    weights, config = checkpoint.read_weights(student)
    assert result["weights_sha256"] == checkpoint.weights_digest(weights)
    assert result["config_sha256"] == checkpoint.digest(config)
    assert {"git_commit", "versions", "device", "precision", "seconds"} <= set(result)
    shown = capsys.readouterr().out
    assert "frechet_distance" in shown
    assert "exists; name another file" in failure([student, *SMALL], capsys)

    capsys.readouterr()
    results.main([str(student)])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4 and rows[0].startswith("| model | sampler | calls | FD |")
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    assert rows[3].startswith("| student | two_step | 2 |") and " ± " in rows[3]


@pytest.mark.slow
def test_samplers_with_changed_values_have_their_own_files(teacher):
    chosen = ["--sampler", "heun", "steps=2", "--sampler", "ddim", "steps=3", "rho=5.0"]
    evaluate.main([str(teacher), *SMALL, *chosen])
    heun, ddim = (
        read(teacher / "evaluation" / f"{name}-n30.json")
        for name in ("heun-steps-2", "ddim-steps-3-rho-5.0")
    )
    assert (heun["title"], heun["calls"], ddim["calls"]) == ("heun steps=2", 3, 3)


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


def test_images_from_elsewhere_are_measured_and_what_is_unknown_is_said(judge, tmp_path, caplog):
    """The same images as a plain array, with channels last, and as PNGs."""
    real, pngs = judge.train[:30], tmp_path / "pngs"
    np.savez(tmp_path / "plain.npz", real.squeeze(1).numpy())
    np.savez(tmp_path / "last.npz", images=real.permute(0, 2, 3, 1).numpy())
    pngs.mkdir()
    for k, image in enumerate(real):
        Image.fromarray(image[0].numpy()).save(pngs / f"{k:03d}.png")
    paths = [tmp_path / "plain.npz", tmp_path / "last.npz", pngs]
    with caplog.at_level("INFO"):
        evaluate.main([str(path) for path in paths])
    found = [read(tmp_path / f"{path.stem}-n30.json") for path in paths]
    expected = judge.measure(real)
    for result in found:
        assert {k: v["mean"] for k, v in result["metrics"].items()} == pytest.approx(expected)
        assert result["sampler"] is result["objective"] is result["weights_sha256"] is None
        assert result["calls"] is None and result["data"]["name"] == "mnist"
    assert "plain.npz: images from elsewhere; what made them, and from what, is" in caplog.text
    assert "| - |" in results.table(found)


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path):
    for name, size in (("a", 28), ("b", 27)):
        Image.new("L", (size, size)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"b\.png: shape \(1, 27, 27\), and the first has"):
        samples.load(tmp_path)
    Image.new("RGB", (28, 28)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png: shape \(3, 28, 28\)"):
        samples.load(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: not a PNG"):
        samples.load(tmp_path)


@pytest.mark.slow
def test_mistakes_are_one_line_before_any_work(teacher, tmp_path, capsys):
    text = tmp_path / "text.npz"
    text.write_text("not an npz file")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, images=np.zeros((20, 28, 27), np.uint8))
    for arguments, said in (
        ([tmp_path / "none"], "no such file or folder"),
        ([teacher, "-n", "9"], "-n 9: must be at least 10"),
        ([teacher, "--seeds", "0"], "--seeds 0: must be at least 1"),
        ([teacher, "--sampler", "magic"], "--sampler magic: unknown"),
        ([teacher, teacher, "-n", "10"], "would hold several results"),
        ([teacher, "-n", "10", "--out", tmp_path / "no" / "x.json"], "there is no folder"),
        ([text], "not a file of images, uint8 under `images`"),
        ([foreign], "compared with mnist: images of shape (1, 28, 27) (channels, height, width)"),
        ([foreign, "--data", "magic"], "magic"),
        ([teacher, "--data", "mnist"], "a model knows its data; leave --data away"),
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
    assert "`python -m scm evaluate run --overwrite`" in caplog.records[-1].getMessage()
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
        ("c", "not a result of scm.commands.evaluate"),
        ("d", "no results there"),
        ("e", "not a result of scm.commands.evaluate"),
    ):
        with pytest.raises(SystemExit) as ended:
            results.main([str(tmp_path / name) for name in names])
        assert ended.value.code == 2 and said in capsys.readouterr().err
