"""What Hydra may do with a config that came from elsewhere: nothing but compose it.

Hydra instantiates callbacks, launchers and sweepers, builds log handlers from factories, and sets
environment variables, all by names that stand in configs, and some of it before any code of this
project is asked. So every composed config passes here first. What the *task* part of a config
names is checked by `scm.validate` and `scm.build`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from scm.cli import fail
from scm.errors import UserError

OWN = r"hydra\._internal\.core_plugins\.\w+\.Basic"
SAMPLERS = r"optuna\.samplers\.(?:TPE|Random|CmaEs|NSGAII|MOTPE|Grid)Sampler"  # the plugin's own
PLUGIN = r"hydra_plugins\.\w+\.\w+\.\w+"  # an installed one: Hydra itself checks its base class
TARGETS = {  # what may be called, by where it stands
    "hydra.launcher._target_": rf"{OWN}Launcher|{PLUGIN}Launcher",
    "hydra.sweeper._target_": rf"{OWN}Sweeper|{PLUGIN}Sweeper",
    "hydra.sweeper.sampler._target_": SAMPLERS,
    "hydra.sweeper.sampler._partial_": "True",  # the grid sampler's: Optuna's sweeper completes it
    "hydra.callbacks.check_first._target_": r"scm\.callbacks\.CheckFirst",
    "hydra.callbacks.sweep._target_": r"scm\.callbacks\.Sweep",
}
LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
HANDLERS = ("logging.StreamHandler", "logging.NullHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
OPTION = re.compile(r"[\w-][\w.-]*")  # of a group: it becomes a part of the run folder's name
COMPLETION = re.compile(r"(install|uninstall|query)=(bash|fish|zsh)")
OUTPUTS = "outputs"


@contextmanager
def guarded() -> Iterator[None]:
    """While entered, Hydra composes nothing that `check` refuses, whoever asks it to."""
    compose = ConfigLoaderImpl.load_configuration

    def checked(*arguments: Any, **more: Any) -> DictConfig:
        try:
            config = compose(*arguments, **more)
        except ValueError as error:  # an override that the parser took, but nothing else can
            raise UserError(f"{' '.join(more.get('overrides', ()))}: {error}") from error
        check(config)
        return config

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


def check_arguments(arguments: list[str]) -> None:
    """End with one line where Hydra's flags are wrong, or would unpickle a file."""
    parser = get_args_parser()
    parser.prog = "run.py"
    parser.error = lambda message: fail(f"{message}; see `python run.py --hydra-help`")  # type: ignore[method-assign]
    if any(argument in ("--version", "-h", "--help") for argument in arguments):
        return
    given = parser.parse_args(arguments)
    if given.experimental_rerun is not None:
        fail("--experimental-rerun: refused, it loads a pickle, which may run code; name overrides")
    if given.shell_completion and not [o for o in given.overrides if COMPLETION.fullmatch(o)]:
        fail("--shell-completion: what to do? -sc install=bash, or uninstall=, for bash, fish, zsh")


def check(config: DictConfig) -> None:
    """Raise UserError where Hydra's part of a config names code, or leaves `outputs/`."""
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    for key, value in _leaves(hydra, "hydra"):
        _check_leaf(key, value)
    for group, option in hydra["runtime"]["choices"].items():
        _check_option(group, option)
    if isinstance(hydra["sweeper"], dict):
        _check_study(hydra["sweeper"])
    if hydra["job"]["env_set"]:
        raise UserError("hydra.job.env_set: refused, set the variables in your shell")
    if hydra["output_subdir"] is not None:
        raise UserError("hydra.output_subdir: refused, a run writes .hydra/ itself; leave it null")
    own = [text.partition("=")[0].lstrip("+") for text in hydra["overrides"]["hydra"]]
    for key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
        if key not in own:  # a path on the command line is the user's own
            _check_path(key, hydra)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key, also inside lists."""
    if isinstance(node, dict) and node:
        for name, part in node.items():
            yield from _leaves(part, f"{key}.{name}")
    elif isinstance(node, list) and node:
        for part in node:
            yield from _leaves(part, key)
    else:
        yield key, node


def _check_leaf(key: str, value: Any) -> None:
    text = str(value)
    if "._" in key and not re.fullmatch(TARGETS.get(key, "(?!)"), text):
        raise UserError(f"{key}={text}: refused, it would be called; leave it out")
    if not key.startswith(LOGGING):
        return
    last = key.rpartition(".")[2]
    wrong = (
        (last == "class" and text not in HANDLERS)
        or ("://" in text and text not in STREAMS)
        or "${" in text
        or "()" in key
        or ".." in key
        or key in LOGGING  # a reference instead of settings
    )
    if wrong and value is not None:
        raise UserError(
            f"{key}={text}: refused, handlers may be {' or '.join(HANDLERS)}, without factories; "
            "run.log has every line anyway"
        )


def _check_option(group: str, option: Any) -> None:
    for name in re.findall(r"[^\[\],'\"\s]+", str(option)):
        if not OPTION.fullmatch(name):
            raise UserError(f"{group}={option}: an option is a file of conf/{group}, not a path")


def _check_study(sweeper: dict[str, Any]) -> None:
    """Optuna's sweeper has two more values that name code: a function, and a database's driver."""
    for key, instead in (
        ("custom_search_space", "name the space in hydra.sweeper.params"),
        ("storage", "with hydra.sweeper.sampler.seed the same command goes on without one"),
    ):
        if sweeper.get(key) is not None:
            raise UserError(
                f"hydra.sweeper.{key}={sweeper[key]}: refused, it names code; {instead}"
            )


def _check_path(key: str, hydra: Any) -> None:
    path = hydra["run"]["dir"] if key == "hydra.run.dir" else hydra["sweep"][key.split(".")[2]]
    parts = PurePath(str(path)).parts
    inside = key == "hydra.sweep.subdir" or parts[:1] == (OUTPUTS,)
    if not inside or ".." in parts or PurePath(str(path)).is_absolute():
        raise UserError(
            f"{key}={path}: a config file may only name a folder below {OUTPUTS}/; "
            f"name another one on the command line, with {key}=FOLDER"
        )
