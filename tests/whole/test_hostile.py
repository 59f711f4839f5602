"""A stranger's config, experiment or checkpoint runs no code: a canary file proves it."""

import pickle
from pathlib import Path

import pytest
import torch
import yaml
from runs import TINY, composed_once
from safetensors.torch import save as safetensors_bytes

from scm.config import compose as composing
from scm.config import rules
from scm.config.read import plain, read
from scm.config.schema import Config
from scm.core.errors import UserError
from scm.storage import model, store

REPOSITORY = Path(__file__).resolve().parents[2]
CALL = "trap.spring"  # a module that the tests put on the path: calling it writes the canary


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that any call of `trap.spring`, and any import of `trap`, would write."""
    canary = tmp_path / "canary"
    source = f"""
from pathlib import Path

def spring(*arguments, **more):
    Path({str(canary)!r}).write_text("called")

spring()
"""
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "trap.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "trap"))
    yield canary
    assert not canary.exists(), "code was run"


@pytest.mark.parametrize(
    "override",
    ["seed=${oc.env:HOME}", "optimized_metric=${oc.env:HOME}", "optimized_metric=${nothing:1}"],
)
def test_resolvers_of_the_environment_or_of_elsewhere_resolve_nothing(override):
    with pytest.raises(UserError, match="Unsupported interpolation type"):
        composing.composed([override])


STRANGERS = {  # experiment files of a stranger's, each with what the answer names
    "target": ({"optimizer": {"_target_": CALL}}, f"optimizer._target_={CALL}: refused"),
    "partial": ({"optimizer": {"_partial_": True}}, "_partial_"),
    "resolver": ({"optimized_metric": "${oc.env:HOME}"}, "oc.env"),
}


def stranger(place, name):
    folder = place / "conf" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(STRANGERS[name][0])
    (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return ["-cd", str(place / "conf"), f"experiment={name}"]


@pytest.fixture
def answer(commands, tmp_path):
    """What the real command answers, with the trap on its path."""

    def answered(arguments):
        ended = commands("run.py", *arguments, path=[tmp_path / "trap"])
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        return ended.stderr

    return answered


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_experiment_through_the_command(name, tmp_path, canary, answer):
    arguments = stranger(tmp_path, name)
    assert STRANGERS[name][1] in answer([*arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_pickled_job_is_not_rerun(tmp_path, canary, answer):
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Bomb(canary)))
    arguments = ["--experimental-rer", str(tmp_path / "job.pickle")]  # argparse takes a beginning
    assert "--experimental-rerun: refused" in answer(arguments)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# ---------------------------------------------------------------- weights and checkpoints


def stored(**changes):
    """A config as files of weights hold it, with one value changed by its dotted name."""
    found = plain(composed_once(("data=bimodal", *TINY["mlp"])))
    for name, value in changes.items():
        node = found
        *groups, last = name.split(".")
        for group in groups:
            node = node[group]
        node[last] = value
    return found


CONFIGS = {  # what such a config may claim, with what the answer names
    "target": ({"model._target_": CALL}, "refused"),
    "a target of ours that is not": ({"model._target_": "scm.data.dataset.torch.load"}, "refused"),
    "no network": ({"model._target_": "scm.method.samplers.Ddim"}, "refused"),
    "nested target": ({"model.time_embedding._target_": CALL}, "refused"),
    "target in a list": ({"data.image_shape": [{"_target_": CALL}]}, "must be"),
    "target in a list of a new key": ({"model.more": [[{"_target_": CALL}]]}, "unknown key"),
    "partial": ({"model._partial_": True}, "unknown key"),
    "arguments": ({"model._args_": ["x"]}, "unknown key"),
    "resolver": ({"model.norm": "${oc.env:HOME}"}, "may not refer"),
    "huge": ({"model.width": 10**9}, "must be"),
    "wide, not so huge": ({"model.width": 16384}, "another network"),
    "a string for a number": ({"model.width": "16"}, "must be"),
    "missing": ({"model": {}}, "missing"),
    "no model": ({"model": None}, "must be a group"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_weights_calls_nothing_and_fills_no_memory(name, tmp_path, canary):
    changes, said = CONFIGS[name]
    path = tmp_path / "ema.safetensors"
    store.save_weights(path, {"w": torch.ones(2)}, stored(**changes))
    with pytest.raises(UserError, match=said) as refused:
        model.load(path, torch.device("cpu"), torch.float32)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"config": "{"},
        {"config": "{}"},
        {"config": "[]"},
        {"config": "3"},
        {"config": "[" * 9999},
    ],
)
def test_safetensors_metadata_that_is_no_config(metadata, tmp_path):
    path = tmp_path / "x.safetensors"
    weights = {"w": torch.ones(1)}
    path.write_bytes(safetensors_bytes(weights, {"sha256": store.digest(weights), **metadata}))
    with pytest.raises(UserError, match=r"of this project|missing; give"):
        model.load(path, torch.device("cpu"), torch.float32)


def test_pickles_with_code_are_refused(tmp_path, canary):
    for name, data in (("zip", None), ("plain", pickle.dumps(Bomb(canary)))):
        path = tmp_path / f"{name}.pt"
        if data is None:
            torch.save({"ema": Bomb(canary), "sha256": ""}, path)
        else:
            path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable checkpoint"):
            store.read(path)
        with pytest.raises(UserError, match="which its own run alone reads"):
            model.load(path, torch.device("cpu"), torch.float32)


def test_a_config_that_was_made_in_python_is_checked_too(tmp_path, canary):
    settings = stored(**{"optimizer._target_": CALL})
    with pytest.raises(UserError, match=r"optimizer\._target_=trap\.spring: refused"):
        rules.check(read(settings, Config))


def test_tensorboard_is_shown_on_this_machine_only():
    lines = (REPOSITORY / "Makefile").read_text().splitlines()
    shown = [line for line in lines if "tensorboard --logdir" in line]
    assert len(shown) == 1 and "--host 127.0.0.1" in shown[0]
