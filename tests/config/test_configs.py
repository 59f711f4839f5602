"""Every yaml composes; what schema and rules refuse; the help names every option."""

import math
import re
from dataclasses import field, fields, make_dataclass
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from runs import swept

from scm.commands.plan import plan
from scm.config import allow, compose, methods, parts, rules
from scm.config.compose import CONF
from scm.config.ranges import RANGE, is_runs
from scm.config.read import flatten, plain, read
from scm.config.schema import Budget, Config, Facts, Trainer
from scm.core.errors import UserError
from scm.storage import model as models
from scm.storage.folder import RunFolder

REPOSITORY = CONF.parent
ABLATIONS = REPOSITORY / "docs" / "sweeps.md"
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
    ("sampler", "flow_two_step"): ["objective=lsd"],
    ("objective/times", "any_pair"): ["objective=lsd"],
    ("objective/times", "two_log_normals"): ["objective=lsd"],
    ("objective/times", "mostly_diagonal"): ["objective=psd"],
    ("objective/velocity", "own"): ["objective=lsd"],
    ("objective/velocity", "exact"): ["data=bimodal", "model=mlp"],
    ("objective/velocity", "guided"): [
        "objective.velocity.guide=pretrained/mnist_teacher.safetensors"
    ],
    ("sampler", "flow_four_step"): ["objective=lsd"],
}


def composed(*overrides):
    return compose.composed(overrides)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(option) for option in OPTIONS])
def test_every_option_composes_and_is_possible(group, option, monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda package: package)  # as if it were installed
    rules.check(composed(f"{group}={option}", *NEEDED.get((group, option), [])))


@pytest.mark.parametrize(
    "experiment", [name for group, name in OPTIONS if (group, name[-4:]) == ("experiment", "_scd")]
)
def test_a_distillations_teacher_can_be_its_teacher(experiment, tmp_path):
    run = composed(f"experiment={experiment}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        plan(run, RunFolder(tmp_path / "run"))


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
        assert "seed" not in values
    else:
        assert len(values["seed"]) >= 3
    first = {key: found[0] for key, found in values.items()}
    for key, found in values.items():
        for value in found:
            job = {**first, key: value}
            rules.check(swept(path.stem, *(f"{k}={v}" for k, v in job.items())))


def values_of(key, text):
    """What the jobs give a key: its choices, or the ends of its interval."""
    override = OverridesParser.create().parse_override(f"{key}={text}")
    if override.is_interval_sweep():
        return [override.value().start, override.value().end]
    return list(override.sweep_string_iterator())


def test_the_table_of_sweeps_is_theirs():
    """docs/sweeps.md has a row per yaml: question, what varies, and the size of line 2."""
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
        name: models.sampler(name, settings, config.data.sigma_data).calls
        for name, settings in config.sampler.items()
    }
    assert len(set(calls.values())) >= 3 and max(calls.values()) <= 35
    named = {name: int(name.partition("_")[2]) for name in calls if name[-1].isdigit()}
    assert named.items() <= calls.items() and bool(named) == (setting == "diffusion")
    assert config.objective.name == setting


ABLATIONS_BY_NAME = [option for group, option in OPTIONS if group == "ablation"]
RECIPES = [option for group, option in OPTIONS if group == "experiment"]
DERIVED = re.compile("(fashion|color)_mnist_.*|.*_gpu").fullmatch


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ABLATIONS_BY_NAME)
def test_an_ablation_is_in_force_with_every_recipe(ablation):
    """Or refused by name, where the recipe has nothing that it could change."""
    in_force(ablation, [recipe for recipe in RECIPES if not DERIVED(recipe)])


@pytest.mark.soak
@pytest.mark.parametrize("ablation", ABLATIONS_BY_NAME)
def test_an_ablation_is_in_force_with_every_derived_recipe(ablation):
    """They are the others' recipes with larger budgets, or on other data."""
    in_force(ablation, [recipe for recipe in RECIPES if DERIVED(recipe)])


def in_force(ablation, recipes):
    delta = yaml.safe_load((CONF / "ablation" / f"{ablation}.yaml").read_text()) or {}
    chosen = delta.pop("defaults", [])
    for recipe in recipes:
        try:
            config = composed(f"experiment={recipe}", f"ablation={ablation}")
        except UserError as error:
            assert f"ablation/{ablation}" in str(error) or "tangent_warmup_steps" in str(error)
            assert any(word in recipe for word in ("diffusion", "teacher", "guide"))
            continue
        flat = flatten(plain(config))
        for key, value in flatten(delta).items():
            assert key == "" or flat[key] == value, (recipe, key)
        for override in chosen:
            ((group, option),) = override.items()
            key = group.removeprefix("override /").replace("/", ".")
            named = yaml.safe_load((CONF / key.replace(".", "/") / f"{option}.yaml").read_text())
            assert flat[f"{key}._target_"] == named["_target_"], (recipe, key)


def test_a_config_survives_being_written_and_read():
    config = composed("experiment=mnist_scd")
    assert read(yaml.safe_load(yaml.safe_dump(plain(config))), Config) == config
    facts = read(plain(config), Facts)
    assert facts.model == config.model and facts.objective.learns is parts.Kind.consistency


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.batch_size=0"], "trainer.batch_size=0: must be a whole number in 1 ..."),
        (["trainer.lr_decay_fraction=1.5"], "trainer.lr_decay_fraction=1.5: must be a number in"),
        (["objective.times.P_std=-1"], r"objective.times.P_std=-1: must be a number in \(0, 50\]"),
        (["model.dropout=1"], r"model.dropout=1: must be a number in \[0, 1\)"),
        (["objective.times.P_mean=nan"], "objective.times.P_mean=nan: must be a number in"),
        (["optimizer.betas=[0.9]"], r"optimizer.betas=\[0.9\]: must be two numbers"),
        (["trainer.budget.steps=null"], "trainer.budget: steps, images and minutes are all null"),
        (
            ["objective=scd", "objective.teacher=null"],
            "objective.teacher=null.*python run.py objective=diffusion",
        ),
        (["objective=sct", "objective.init=nowhere"], "objective.init=nowhere: no such file"),
        (["objective=diffusion", "weighting=no_prior"], "NoPrior: changes the tangent"),
        (
            ["objective=diffusion", "ablation=sin_tangent"],
            "SinTangent: changes the tangent",
        ),
        (["sampler=heun"], "sampler=heun: needs a network that learns velocity"),
        (["sampler=[]"], "sampler: none is chosen"),
        (["objective=lsd", "model.second_time=false"], "model.second_time=False: objective=lsd"),
        (["objective=lsd", "objective/times=log_normal"], "LogNormal: objective=lsd learns flow"),
        (["objective/times=any_pair"], "AnyPair: objective=sct learns consistency"),
        (["objective/velocity=own"], "Own: objective=sct learns consistency"),
        (["objective=meanflow", "objective/derivative=difference"], "objective.derivative=diff"),
        (["objective=lsd", "objective/velocity=pair"], "Pair: objective=lsd asks for the velocity"),
        (["objective/velocity=exact"], "Exact: only data=bimodal without classes"),
        (["objective=cmt", "objective/velocity=pair"], "Pair: objective=cmt asks for the velocity"),
        (["objective=lsd", "ablation=log_noise"], "c_noise=log: infinite at s = 0"),
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
            "optimized_metric=fid: no number of this run",
        ),
        (["optimized_metric=final/heun/kid"], "final/heun/kid: no number of this run"),
        (["model.time_embedding.dim=3"], "model.time_embedding.dim=3: must be an even number in"),
    ],
)
def test_impossible_values_are_named(overrides, said):
    with pytest.raises(UserError, match=said):
        rules.check(composed(*overrides))


def test_a_network_without_classes_fits_where_it_may():
    classless, classes = (
        composed("objective=diffusion", f"model.num_classes={n}", "sampler=heun") for n in (0, 10)
    )
    for theirs, mine in ((classless, classless), (classes, classes), (classless, classes)):
        rules.check_fits(theirs, mine, "it", or_classless=True)
    with pytest.raises(UserError, match=r"it: .*model.num_classes=0, this run has 10"):
        rules.check_fits(classless, classes, "it")
    with pytest.raises(UserError, match=r"it: .*model.num_classes=10, this run has 0"):
        rules.check_fits(classes, classless, "it", or_classless=True)


@pytest.mark.parametrize(
    "override",
    [
        "objective.foo=1",
        "+objective.foo=1",
        "+foo=1",
        "+model.time_embedding.foo=1",
        "trainer.batch_size=many",
        "objective.tangent.norm=l3",
        "objective.derivative.form=triple",
        "trainer.precision=fp8",
        "weighting=none",
        "nothing=1",
    ],
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(override):
    with pytest.raises(UserError):
        composed(override)


def schemas(base):
    """Every schema below `base`, itself first."""
    return [base, *(found for derived in base.__subclasses__() for found in schemas(derived))]


def test_every_target_of_the_schema_is_a_class_that_takes_its_settings():
    for schema in schemas(parts.Part):
        for target in schema.targets:
            asks = allow._asks(allow.target("test", target))
            own = {f.name for f in fields(schema) if not is_runs(f)} - {"_target_", "further"}
            assert own <= asks, target


def test_the_schema_knows_which_weightings_change_the_tangent():
    t = torch.tensor([0.3, 1.2])
    for schema in schemas(methods.Weighting):
        for target in schema.targets:
            scale = allow.target("test", target)(sigma_data=0.5).on_tangent(t)
            assert schema.changes_tangent == (not torch.equal(scale, torch.ones(2))), target


BAD = {  # values that a field of this type refuses, whatever its range
    int: ["many", 1.5, True],
    float: ["many", True],
    bool: [1, "yes"],
    str: [1],
}


@pytest.mark.parametrize("schema", [Config, Trainer, Budget, *schemas(parts.Part)], ids=str)
def test_every_field_refuses_what_is_not_of_its_type_or_range(schema):
    """Generated from the schema itself: no field can be forgotten."""
    hints = get_type_hints(schema)
    for one in fields(schema):
        kinds = [kind for kind in (get_args(hints[one.name]) or [hints[one.name]]) if kind in BAD]
        is_list = get_origin(hints[one.name]) is list
        for kind in kinds:
            for value in BAD[kind]:
                with pytest.raises(UserError, match=f"here.{one.name}="):
                    _one(schema, one.name, [value] if is_list else value)
        held = one.metadata.get(RANGE)
        for value in (-1e30, 1e30, math.nan, []) if held and kinds else ():
            wrong = [int(value)] if is_list and value not in ([],) and value == value else value
            with pytest.raises(UserError, match=f"here.{one.name}="):
                _one(schema, one.name, wrong)
                if held.holds(wrong):  # so large a value is allowed there
                    raise UserError(f"here.{one.name}=")


def _one(schema, name, value):
    """Read a schema of this one field."""
    hints = get_type_hints(schema)
    metadata = schema.__dataclass_fields__[name].metadata
    single = make_dataclass("single", [(name, hints[name], field(metadata=metadata))])
    return read({name: value}, single, "here")


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
