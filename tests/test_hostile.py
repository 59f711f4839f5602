"""A stranger's config, experiment or checkpoint runs no code: a canary file proves it."""

import copy
import functools
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from runs import TINY, built, composed_once
from safetensors.torch import save as safetensors_bytes

from scm import build, checkpoint, composing, guard, validate
from scm.composing import CONF
from scm.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
CALL = "trap.spring"  # a module that the tests put on the path: calling it writes the canary
PREFIX = "hydra.job_logging"
HOSTILE = (  # of Hydra's part: refused while composing, before anything is instantiated
    (f"+hydra.callbacks.evil._target_={CALL}", "hydra.callbacks.evil._target_"),
    (f"hydra.callbacks.check_first._target_={CALL}", "hydra.callbacks.check_first._target_"),
    ("hydra.callbacks.check_first._target_=scm.data.os.system", "refused"),
    ("+hydra.callbacks.check_first._args_=[1]", "_args_"),
    ("+hydra.callbacks.check_first._partial_=true", "_partial_"),
    (f"hydra.launcher._target_={CALL}", "hydra.launcher._target_"),
    (
        "hydra.launcher._target_=hydra._internal.core_plugins.basic_launcher.os.system",
        "hydra.launcher._target_",
    ),
    (f"hydra.sweeper._target_={CALL}", "hydra.sweeper._target_"),
    (f"+hydra.sweeper.sampler._target_={CALL}", "hydra.sweeper.sampler._target_"),
    ("+hydra.sweeper.sampler._target_=optuna.samplers.os.system", "hydra.sweeper.sampler._target_"),
    ("+hydra.sweeper.sampler._target_=optuna.samplers.TPESampler.x", "refused"),
    (f"+hydra.sweeper.sampler.constraints_func._target_={CALL}", "constraints_func._target_"),
    ("+hydra.sweeper.sampler._args_=[1]", "hydra.sweeper.sampler._args_"),
    (f"+hydra.sweeper.custom_search_space={CALL}", "hydra.sweeper.custom_search_space"),
    ("+hydra.sweeper.storage='trap://x/y'", "hydra.sweeper.storage"),
    ("+hydra.sweeper.storage='sqlite:////tmp/x.db'", "hydra.sweeper.storage"),
    (f"+hydra.sweeper.storage._target_={CALL}", "hydra.sweeper.storage._target_"),
    (f"+{PREFIX}.handlers.evil.class={CALL}", "without factories"),
    (f"+{PREFIX}.handlers.evil={{class:logging.FileHandler,filename:/tmp/x}}", "refused"),
    (f"+{PREFIX}.formatters.evil={{class:{CALL}}}", "without factories"),
    (f"+{PREFIX}.handlers.evil={{stream:'ext://{CALL}'}}", "refused"),
    (f"{PREFIX}=${{hydra.help}}", "refused"),
    ("hydra/job_logging=default", "run.log has every line"),
    ("+hydra.job.env_set.LD_PRELOAD=evil.so", "hydra.job.env_set"),
    ("+hydra.job.env_set.PATH=/tmp/evil", "hydra.job.env_set"),
    ("hydra.output_subdir=../../elsewhere", "hydra.output_subdir"),
)


def composed(*overrides):
    """Hydra's whole config, as the command composes it."""
    composing.register()
    with guard.guarded(), initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@functools.cache
def composed_with_hydra():
    return composed("hydra.run.dir=anywhere")


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


@pytest.mark.slow
def test_hydras_part_may_call_nothing(canary):
    """One test, as composing takes a while: every row is refused."""
    allowed = []
    for override, said in HOSTILE:
        try:
            composed(override)
            allowed.append(override)
        except UserError as error:
            assert said in str(error), override
    assert allowed == []


@pytest.mark.parametrize("part", ["job_logging", "hydra_logging"])
@pytest.mark.parametrize("kind", ["handlers", "formatters", "filters"])
def test_log_factories_out_of_files_are_refused(kind, part, canary):
    """Hydra's command line has no spelling for the key `()`; a file has."""
    cfg = composed_with_hydra()
    evil = {"hydra": {part: {kind: {"evil": {"()": CALL}}}}}
    with open_dict(cfg), pytest.raises(UserError, match="without factories"):
        guard.check(OmegaConf.merge(cfg, evil))


def test_hydras_own_part_passes():
    hydra = composed("sampler=[one_step,two_step]", "experiment=quickstart_scd").hydra
    assert hydra.launcher._target_.endswith("BasicLauncher")


def test_optunas_own_samplers_pass():
    """By their configs alone: Optuna itself is an extra."""
    cfg = OmegaConf.to_container(composed_with_hydra())
    for name in ("TPE", "Random", "CmaEs", "NSGAII", "MOTPE", "Grid"):
        sampler = {"_target_": f"optuna.samplers.{name}Sampler", "seed": 0}
        sampler |= {"_partial_": True} if name == "Grid" else {}
        optuna = {"sampler": sampler, "storage": None, "custom_search_space": None}
        cfg["hydra"]["sweeper"] = optuna
        guard.check(OmegaConf.create(cfg))


@pytest.mark.parametrize(
    "override",
    ["seed=${oc.env:HOME}", "optimized_metric=${oc.env:HOME}", "optimized_metric=${nothing:1}"],
)
def test_resolvers_of_the_environment_or_of_elsewhere_resolve_nothing(override):
    with pytest.raises(UserError, match="Unsupported interpolation type"):
        composing.composed([override])


def test_an_options_name_cannot_leave_its_group_or_outputs(tmp_path):
    (tmp_path / "evil.yaml").write_text("# @package _global_\nseed: 1\n")
    up = "/".join([".."] * 20)
    with pytest.raises(UserError, match="not a path"):
        composed(f"experiment={up}{tmp_path}/evil")
    for option in ("../x", "a/b", "/x", ".hidden", "..", "a b/c"):
        with pytest.raises(UserError, match="not a path"):
            guard._check_option("objective", option)
    guard._check_option("sampler", "['one_step', 'two_step']")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("outputs/mine", True),
        ("outputs/${now:%Y}-x", True),
        ("outputs/../../mine", False),
        ("/tmp/mine", False),
        ("elsewhere/mine", False),
        ("outputs", True),
    ],
)
def test_a_file_names_run_folders_below_outputs_only(path, allowed):
    """On the command line any path is the user's own choice."""
    cfg = copy.deepcopy(composed_with_hydra())
    guard.check(cfg)
    cfg.hydra.overrides.hydra = []
    cfg.hydra.run.dir = path
    if allowed:
        guard.check(cfg)
    else:
        with pytest.raises(UserError, match="only name a folder below outputs/"):
            guard.check(cfg)


STRANGERS = {  # experiment files of a stranger's, each with what the answer names
    "callback": ({"hydra": {"callbacks": {"evil": {"_target_": CALL}}}}, "hydra.callbacks.evil"),
    "factory": ({"hydra": {"job_logging": {"handlers": {"x": {"()": CALL}}}}}, "factories"),
    "variables": ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "x"}}}}, "env_set"),
    "folder": ({"hydra": {"run": {"dir": "/tmp/elsewhere"}}}, "hydra.run.dir=/tmp/elsewhere"),
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


def answer(place, arguments):
    """The real command, with the trap on its path."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{place / 'trap'}"}
    ended = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.mark.slow
def test_a_strangers_experiment_through_the_command(tmp_path, canary):
    arguments = stranger(tmp_path, "factory")
    assert "factories" in answer(tmp_path, [*arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_pickled_job_is_not_rerun(tmp_path, canary):
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Bomb(canary)))
    arguments = ["--experimental-rer", str(tmp_path / "job.pickle")]  # argparse takes a beginning
    assert "--experimental-rerun: refused" in answer(tmp_path, arguments)


@pytest.mark.soak
def test_every_strangers_experiment_and_override_through_the_command(tmp_path, canary):
    for name, (_, said) in STRANGERS.items():
        assert said in answer(tmp_path, stranger(tmp_path, name)), name
    for override, said in HOSTILE:
        for mode in ([], ["-m"]):
            assert said in answer(tmp_path, [*mode, override]), override


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# ---------------------------------------------------------------- checkpoints


def stored(**changes):
    """A config as checkpoints hold it, with one value changed by its dotted name."""
    found = json.loads(json.dumps(composed_once(("data=bimodal", *TINY["mlp"]))))
    for name, value in changes.items():
        node = found
        *groups, last = name.split(".")
        for group in groups:
            node = node[group]
        node[last] = value
    return found


CONFIGS = {  # what a checkpoint's config may claim, with what the answer names
    "target": ({"model._target_": CALL}, "refused"),
    "a target of ours that is not": ({"model._target_": "scm.data.torch.load"}, "refused"),
    "no network": ({"model._target_": "scm.samplers.Ddim"}, "refused"),
    "nested target": ({"model.time_embedding._target_": CALL}, "refused"),
    "target in a list": ({"model.image_shape": [{"_target_": CALL}]}, "must be"),
    "target in a list of a new key": ({"model.more": [[{"_target_": CALL}]]}, "refused"),
    "partial": ({"model._partial_": True}, "refused"),
    "arguments": ({"model._args_": ["x"]}, "refused"),
    "resolver": ({"model.norm": "${oc.env:HOME}"}, "may not refer"),
    "huge": ({"model.width": 10**9}, "must be"),
    "wide, not so huge": ({"model.width": 16384}, "another network"),
    "a string for a number": ({"model.width": "16"}, "must be"),
    "missing": ({"model": {}}, "no config of this project"),
    "no model": ({"model": None}, "no config of this project"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_checkpoints_config_calls_nothing_and_fills_no_memory(kind, name, tmp_path, canary):
    changes, said = CONFIGS[name]
    weights = {"w": torch.ones(2)}
    if kind == "pt":
        state = {"ema": weights, "config": stored(**changes)}
        path = checkpoint.save(tmp_path, state, step=1, keep=1)
    else:
        path = tmp_path / "ema.safetensors"
        checkpoint.save_weights(path, weights, stored(**changes))
    with pytest.raises(UserError, match=said) as refused:
        build.trained_network(path, torch.device("cpu"), torch.float32)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "metadata", [{}, {"config": "{"}, {"config": "[]"}, {"config": "[" * 9999}]
)
def test_safetensors_metadata_that_is_no_config(metadata, tmp_path):
    path = tmp_path / "x.safetensors"
    weights = {"w": torch.ones(1)}
    path.write_bytes(safetensors_bytes(weights, {"sha256": checkpoint.digest(weights), **metadata}))
    with pytest.raises(UserError, match=r"of this project"):
        build.trained_network(path, torch.device("cpu"), torch.float32)


def test_a_safetensors_header_cannot_ask_for_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    for header in (2**40, 2**63, 0):
        path.write_bytes(header.to_bytes(8, "little") + b"{}")
        with pytest.raises(UserError, match="not weights of this project"):
            checkpoint.read_weights(path)


def test_a_pt_file_grows_no_larger_than_it_is(tmp_path):
    """Compressed parts, a tensor of a terabyte over four bytes, a list within itself."""
    path = checkpoint.save(tmp_path, {"ema": {"w": torch.zeros(10**6)}}, step=1, keep=1)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert bomb.stat().st_size < path.stat().st_size / 100
    with pytest.raises(UserError, match="holds compressed parts"):
        checkpoint.read(bomb)

    torch.save({"ema": torch.zeros(1).expand(2**38), "sha256": ""}, bomb)
    with pytest.raises(UserError, match="without its values"):
        checkpoint.read(bomb)

    inside: list = []
    inside.append(inside)
    torch.save({"ema": inside, "sha256": ""}, bomb)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.read(bomb)


def test_pickles_with_code_are_refused(tmp_path, canary):
    for name, data in (("zip", None), ("plain", pickle.dumps(Bomb(canary)))):
        path = tmp_path / f"{name}.pt"
        if data is None:
            torch.save({"ema": Bomb(canary), "sha256": ""}, path)
        else:
            path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable checkpoint"):
            checkpoint.read(path)


def test_a_config_that_was_made_in_python_is_checked_too(tmp_path, canary):
    settings = stored(**{"optimizer._target_": CALL})
    with pytest.raises(UserError, match=r"optimizer\._target_=trap\.spring: refused"):
        validate.check(settings)
    experiment = built(tmp_path / "run", "data=bimodal", *TINY["mlp"])
    with pytest.raises(UserError, match="refused"):
        build.construct(torch.optim.Optimizer, "optimizer", settings["optimizer"], params=[])
    assert experiment.optimizer is not None


def test_tensorboard_is_shown_on_this_machine_only():
    lines = (REPOSITORY / "Makefile").read_text().splitlines()
    shown = [line for line in lines if "tensorboard --logdir" in line]
    assert len(shown) == 1 and "--host 127.0.0.1" in shown[0]
