"""`python -m scm.export`: what is shipped is the run's, judged as shipped, and says where from."""

import json

import pytest
import torch
from runs import TINY, small_quality, trained

from scm import build, checkpoint, export

RUN = (*TINY["unet_small"], "trainer.budget.steps=2", "trainer.log_every=1")


@pytest.fixture(autouse=True)
def judge(tmp_path, monkeypatch):
    quality = small_quality(tmp_path / "cache", train=300, test=100)
    monkeypatch.setattr(build, "quality", lambda *_: quality)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    trained(path, "objective=sct", *RUN)
    (path / ".hydra" / "overrides.yaml").write_text("- objective=sct\n- seed=0\n")
    return path


def failure(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_weights_evaluation_and_card_stand_beside_each_other(run, tmp_path, capsys):
    name = tmp_path / "digits"
    export.main([str(run), str(name), "-n", "30", "--seeds", "1"])
    weights, config = checkpoint.read_weights(run)
    shipped, shipped_config = checkpoint.read_weights(tmp_path / "digits.safetensors")
    assert shipped_config == config
    assert all(torch.equal(weights[key], shipped[key]) for key in weights)
    card = (tmp_path / "digits.md").read_text()
    results = sorted(tmp_path.glob("digits-*.json"))
    assert [file.name for file in results] == [
        "digits-one_step-n30.json",
        "digits-two_step-n30.json",
    ]
    distance = json.loads(results[0].read_text())["metrics"]["frechet_distance"]["mean"]
    assert f"{distance:.2f}" in card and "python run.py objective=sct seed=0" in card
    assert checkpoint.weights_digest(weights) in card
    assert "exists" in failure([run, name], capsys)


@pytest.mark.slow
def test_what_cannot_be_shipped_is_refused_and_leaves_nothing(run, tmp_path, capsys):
    assert "no folder" in failure([run, tmp_path / "nowhere" / "digits"], capsys)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "status": "stopped"}))
    assert "is stopped, not done" in failure([run, tmp_path / "digits"], capsys)
    assert not list(tmp_path.glob("digits*"))
