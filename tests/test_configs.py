"""Every yaml composes; what the schema or `validate` refuses; the help names every option."""

import inspect
from fnmatch import fnmatchcase

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from runs import swept

from scm import build, composing, launch, samplers, validate, weighting
from scm.composing import CONF
from scm.errors import UserError
from scm.runfolder import RunFolder, flatten

REPOSITORY = CONF.parent
ABLATIONS = REPOSITORY / "docs" / "ablations.md"
SWEEPS = sorted((REPOSITORY / "sweeps").glob("*.yaml"))
OPTIONS = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF
)
NEEDED = {  # what an option needs beside itself to be a possible run
    ("data", "bimodal"): ["model=mlp"],
    ("sampler", "heun"): ["objective=diffusion"],
    ("sampler", "ddim"): ["objective=diffusion"],
}


def composed(*overrides):
    return composing.composed(overrides)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(option) for option in OPTIONS])
def test_every_option_composes_and_is_possible(group, option):
    validate.check(composed(f"{group}={option}", *NEEDED.get((group, option), [])))


@pytest.mark.parametrize(
    "experiment", [name for group, name in OPTIONS if (group, name[-4:]) == ("experiment", "_scd")]
)
def test_a_distillations_teacher_can_be_its_teacher(experiment, tmp_path):
    run = composed(f"experiment={experiment}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        launch.check(run, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(option) for option in OPTIONS])
def test_every_option_says_in_one_line_what_it_is(group, option):
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("# ") and "@package" not in line]
    assert comments and len(comments[0]) > 20


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_composes(path):
    """A sweep is a primary config that sits on `config` and says its question on line 1."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].rstrip().endswith(f"-cd sweeps -cn {path.stem}")
    hydra = yaml.safe_load(path.read_text())["hydra"]
    values = {key: values_of(key, text) for key, text in hydra["sweeper"]["params"].items()}
    if "n_trials" in hydra["sweeper"]:  # a search of one seed, by a sweeper that is an extra
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs .[optuna]")
    else:
        assert len(values["seed"]) >= 3
    first = {key: found[0] for key, found in values.items()}
    for key, found in values.items():
        for value in found:
            job = {**first, key: value}
            validate.check(swept(path.stem, *(f"{k}={v}" for k, v in job.items())))


def values_of(key, text):
    """What the jobs give a key: its choices, or the ends of its interval."""
    override = OverridesParser.create().parse_override(f"{key}={text}")
    if override.is_interval_sweep():
        return [override.value().start, override.value().end]
    return list(override.sweep_string_iterator())


def test_the_table_of_sweeps_is_theirs():
    """docs/ablations.md has a row per yaml: question, what varies, and the size of line 2."""
    rows = []
    for path in SWEEPS:
        question, size = path.read_text().splitlines()[:2]
        params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
        varied = "; ".join(f"`{k}={v}`" for k, v in params.items() if k != "seed")
        asked = question.removeprefix("# ").partition(" python run.py")[0]
        rows.append(f"| `{path.stem}` | {asked} | {varied} | {size.removeprefix('# ')} |")
    table = [line for line in ABLATIONS.read_text().splitlines() if line.startswith("| `")]
    assert table == rows


@pytest.mark.parametrize("setting", ["diffusion", "sct", "scd"])
def test_sampler_steps_measures_at_several_numbers_of_calls(setting):
    config = swept("sampler_steps", f"sampler_steps={setting}")
    calls = {
        name: build.sampler(settings, name, config["data"]["sigma_data"]).calls
        for name, settings in config["sampler"].items()
    }
    assert len(set(calls.values())) >= 3 and max(calls.values()) <= 35
    named = {name: int(name.partition("_")[2]) for name in calls if name[-1].isdigit()}
    assert named.items() <= calls.items() and bool(named) == (setting == "diffusion")
    assert config["objective"]["_target_"].lower().endswith(f".{setting}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.batch_size=0"], "trainer.batch_size=0: must be a whole number in 1 ..."),
        (["trainer.lr_decay_fraction=1.5"], "trainer.lr_decay_fraction=1.5: must be a number in"),
        (["objective.P_std=-1"], r"objective.P_std=-1.0: must be a number in \(0, 50\]"),
        (["objective.dropout=1"], "objective.dropout=1.0: must be a number in"),
        (["objective.P_mean=nan"], "objective.P_mean=nan: must be a number in"),
        (["optimizer.betas=[0.9]"], r"optimizer.betas=\[0.9\]: must be two numbers"),
        (["trainer.budget.steps=null"], "trainer.budget: steps, images and minutes are all null"),
        (
            ["objective=scd", "objective.teacher=null"],
            "objective.teacher=null.*python run.py objective=diffusion",
        ),
        (["objective=sct", "objective.init=nowhere"], "objective.init=nowhere: no such file"),
        (["objective=diffusion", "weighting=no_prior"], "weighting=no_prior: changes the tangent"),
        (
            ["objective=diffusion", "ablation=sin_tangent"],
            "weighting=sin_tangent: changes the tangent",
        ),
        (["sampler=heun"], "sampler=heun: integrates the ODE"),
        (["sampler=[]"], "sampler: none is chosen"),
        (
            ["objective=diffusion", "sampler.heun.sigma_min=90"],
            "sampler.heun.sigma_min=90.0: must be below",
        ),
        (["optimizer._target_=os.system"], "optimizer._target_=os.system: refused"),
        (["model.time_embedding._target_=builtins.eval"], "_target_=builtins.eval: refused"),
        (["trainer.micro_batch_size=0"], "trainer.micro_batch_size=0: must be a whole number"),
        (
            ["trainer.compile=cuda_graphs", "trainer.micro_batch_size=8"],
            "trainer.compile=cuda_graphs: its graphs reuse the memory",
        ),
        (["trainer.quality_images=5"], r"trainer.quality_images=5: must be 0 \(none\) or a whole"),
        (["trainer.final_quality_images=9"], "trainer.final_quality_images=9: must be 0"),
        (
            ["optimized_metric=fid"],
            "optimized_metric=fid: this run has none; there is: eval/loss, ",
        ),
        (["optimized_metric=final/heun/kid"], "final/heun/kid: this run has none"),
        (["model.time_embedding.dim=3"], "model.time_embedding.dim=3: must be an even number in"),
    ],
)
def test_impossible_values_are_named(overrides, said):
    with pytest.raises(UserError, match=said):
        validate.check(composed(*overrides))


@pytest.mark.parametrize(
    "override",
    [
        "objective.foo=1",
        "+objective.foo=1",
        "+foo=1",
        "+model.time_embedding.foo=1",
        "trainer.batch_size=many",
        "objective.tangent.norm=l3",
        "objective.jvp=triple",
        "trainer.precision=fp8",
        "weighting=none",
        "nothing=1",
    ],
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(override):
    with pytest.raises(UserError):
        composed(override)


def test_validate_knows_the_samplers_that_need_a_velocity():
    kinds = [kind for _, kind in inspect.getmembers(samplers, inspect.isclass)]
    velocity = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in kinds
        if getattr(kind, "uses_velocity", False) and not inspect.isabstract(kind)
    }
    assert velocity == set(validate.VELOCITY_SAMPLERS)


def test_validate_knows_the_weightings_that_change_the_tangent():
    kinds = [kind for _, kind in inspect.getmembers(weighting, inspect.isclass)]
    changing = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in kinds
        if getattr(kind, "changes_tangent", False)
    }
    assert changing == set(validate.TANGENT_WEIGHTINGS)


def test_every_range_is_about_a_key_that_exists():
    """A misspelt key in `validate.RANGES` would check nothing."""
    keys = set()
    for group, option in OPTIONS:
        keys |= set(flatten(composed(f"{group}={option}")))
    unused = [p for p in validate.RANGES if not any(fnmatchcase(key, p) for key in keys)]
    assert unused == []


def test_help_names_every_group_and_option():
    words: dict[str, set[str]] = {}
    group = ""
    for line in (CONF / "config.yaml").read_text().splitlines():
        parts = line.replace("|", " ").split()
        if parts and parts[0] in {group for group, _ in OPTIONS}:
            group = parts[0]
        words.setdefault(group, set()).update(parts)
    missing = [f"{group}={option}" for group, option in OPTIONS if option not in words[group]]
    assert missing == [], f"--help lacks {missing}"
