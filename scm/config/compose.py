"""From overrides to a config: Hydra composes conf/, and its errors become one line."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from scm.config.read import flatten, nearest, read
from scm.config.schema import Config
from scm.core.errors import UserError
from scm.core.files import CONF

GROUPS = sorted(str(f.relative_to(CONF)) for f in CONF.rglob("*") if f.is_dir())
SWEEPS = CONF.parent / "sweeps"
NO_CONFIG = "Cannot find primary config"
SEVERAL_VALUES = "Ambiguous value for argument"
HYDRAS_INTERNALS = (  # lines of Hydra's errors that help nobody who calls run.py
    "To append to your config",
    "full_key:",
    "reference_type=",
    "object_type=",
    "Config search path",
    "provider=",
)


def prepare() -> None:
    """To be called before Hydra composes: `${oc.env:...}` goes.

    A config from elsewhere could carry the user's secrets into a file of weights.
    """
    OmegaConf.clear_resolver("oc.env")


def composed(overrides: Sequence[str]) -> Config:
    """What `run.py` would make of these overrides, without a command line.

    Raises UserError, in one line, for an unknown key or option, a wrong type or a value out of its
    range.
    """
    prepare()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return config_of(compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise one_line(error) from None


def config_of(cfg: DictConfig) -> Config:
    """What Hydra has composed, read: the one border between its configs and ours.

    Raises UserError, or one of OmegaConf's errors for a reference to nowhere.
    """
    return read(resolved(cfg), Config)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """What Hydra has composed, without its own part, as nested dicts of plain values."""
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return OmegaConf.to_container(task, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def one_line(error: BaseException) -> UserError:
    """Hydra's several lines and their cause, without what only Hydra's developers need.

    What was probably meant, or what there is, is added.
    """
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip().removeprefix("In 'config': ") for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(HYDRAS_INTERNALS)]
    if hint := _hint(error):
        kept = [kept[0].partition(". ")[0].rstrip("."), hint]
    return UserError("; ".join(dict.fromkeys(kept)).replace(":; ", ": ").replace(".; ", "; "))


def _hint(error: BaseException) -> str:
    """What helps with an unknown key or sweep, or with several values; else nothing."""
    unknown = error.__cause__ or error
    if isinstance(error, MissingConfigException) and str(error).startswith(NO_CONFIG):
        sweeps, name = [file.stem for file in SWEEPS.glob("*.yaml")], str(error.missing_cfg_file)
        return "add -cd sweeps for that sweep" if name in sweeps else nearest(name, sweeps)
    if isinstance(unknown, ConfigKeyError | ConfigAttributeError):
        key, parent = str(unknown.key), unknown.parent_node
        if isinstance(parent, DictConfig):
            if homes := _homes(key, parent):
                return f"{key} stands at {' and '.join(homes)}"
            keys = [str(name) for name in parent if name not in ("hydra", "_target_")]
            there = GROUPS if "/" in key else keys
            return nearest(key, there, str(unknown.full_key).removesuffix(key))
    if isinstance(unknown, MissingMandatoryValue):
        return (
            f"{unknown.full_key} has no value; choose an objective, which sets it, or give it one"
        )
    if str(error).startswith(SEVERAL_VALUES):
        return "add -m to sweep over its values, or write [...] round them where they are one list"
    return ""


def _homes(key: str, parent: DictConfig) -> list[str]:
    """Where a key of this name does stand in the whole config."""
    root: Any = parent._get_root()
    whole = OmegaConf.to_container(root, resolve=False)
    assert isinstance(whole, dict)
    task = {name: part for name, part in whole.items() if name != "hydra"}
    key = "form" if key == "jvp" else key  # its former name
    return [full for full in flatten(task) if full.rpartition(".")[2] == key]
