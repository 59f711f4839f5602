"""`python -m scm export`: what is shipped is the run's, judged as shipped, and says where from."""

import json
import shutil

import pytest
import torch
import yaml

import scm
from scm.commands import evaluate, export
from scm.storage import store as checkpoint


@pytest.fixture(autouse=True)
def small(judge, monkeypatch):
    monkeypatch.setattr(evaluate, "quality_of", lambda *_: judge)


@pytest.fixture
def run(models, tmp_path):
    path = shutil.copytree(models / "sct", tmp_path / "run")
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
    asked = f"python -m scm evaluate {name}.safetensors -n 30 --seeds 1 --overwrite"
    assert f"`{asked}`" in card
    evaluate.main(asked.split()[4:])  # word for word
    assert "exists" in failure([run, name], capsys)


@pytest.mark.slow
def test_a_hubs_folder_holds_weights_config_and_a_card_with_tags(run, tmp_path, capsys):
    folder, few = tmp_path / "digits", ("-n", "30", "--seeds", "1", "--to", "hub")
    export.main([str(run), str(folder), *few])
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "README.md"),
        *("model-one_step-n30.json", "model-two_step-n30.json"),
    }
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and "pytorch_model_hub_mixin" in front["tags"]
    assert "\n# digits\n" in card and "| one_step | 1 |" in card
    weights, config = checkpoint.read_weights(run)
    assert json.loads((folder / "config.json").read_text()) == config
    loaded = scm.load(folder, device="cpu", precision="fp32")
    torch.testing.assert_close(dict(loaded.net.state_dict()), weights, rtol=0, atol=0)
    assert "digits: exists; name another folder" in failure([run, folder, *few], capsys)
    export.main([str(run), str(folder), *few, "--overwrite"])
    assert "there is no folder" in failure([run, tmp_path / "no" / "x", *few], capsys)


@pytest.mark.slow
def test_a_card_shows_results_of_its_own_weights_alone_and_a_dotted_name_stays(run, tmp_path):
    arguments = [str(run), str(tmp_path / "model_v1.5"), "-n", "30", "--seeds", "1"]
    export.main([*arguments, "--sampler", "one_step"])
    (result,) = tmp_path.glob("*.json")
    assert result.name == "model_v1.5-one_step-n30.json"
    old = {**json.loads(result.read_text()), "weights_sha256": "other", "title": "of old weights"}
    (tmp_path / "model_v1.5-old-n30.json").write_text(json.dumps(old))
    export.main([*arguments, "--sampler", "one_step", "--overwrite"])
    card = (tmp_path / "model_v1.5.md").read_text()
    assert card.startswith("# model_v1.5\n") and "| one_step |" in card
    assert "of old weights" not in card and (tmp_path / "model_v1.5.safetensors").exists()


@pytest.mark.slow
def test_what_cannot_be_shipped_is_refused_and_leaves_nothing(run, tmp_path, capsys):
    assert "no folder" in failure([run, tmp_path / "nowhere" / "digits"], capsys)
    for more, said in (
        (["--sampler", "bogus"], "--sampler bogus: unknown"),
        (["--sampler", "multi_step", "times=[1,2]"], "must fall"),
        (["--sampler", "two_step", "--sampler", "two_step"], "asked for twice"),
        (["-n", "5"], "-n 5: must be at least 10"),
    ):
        assert said in failure([run, tmp_path / "digits", *more], capsys)
    assert "a folder" in failure([run, tmp_path], capsys)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "status": "stopped"}))
    assert "is stopped, not done" in failure([run, tmp_path / "digits"], capsys)
    assert not list(tmp_path.glob("digits*"))
