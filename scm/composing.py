"""From overrides to a plain config: Hydra composes conf/ under `scm.config`'s schemas. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from scm.config import SCHEMAS
from scm.errors import UserError

CONF = Path(__file__).resolve().parent.parent / "conf"
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
    "schema_",
)


def register() -> None:
    """Make the schemas known to Hydra; to be called before it composes.

    `${oc.env:...}` goes: a config from elsewhere could carry the user's secrets into a checkpoint.
    """
    OmegaConf.clear_resolver("oc.env")
    store = ConfigStore.instance()
    for (group, name), node in SCHEMAS.items():
        store.store(group=group, name=name, node=node)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """What `run.py` would compose of these overrides, plain and resolved, without a command line.

    Raises UserError, in one line, for an unknown key or option or a wrong type.
    """
    register()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return plain(compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise one_line(error) from None


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
            keys = [str(name) for name in parent if name not in ("hydra", "_target_")]
            there = GROUPS if "/" in key else keys
            return nearest(key, there, str(unknown.full_key).removesuffix(key))
    if str(error).startswith(SEVERAL_VALUES):
        return "add -m to sweep over its values, or write [...] round them where they are one list"
    return ""


def nearest(wrong: str, there: Iterable[str], prefix: str = "") -> str:
    """The name that was probably meant, or all that there are; `prefix` stands before each."""
    close = get_close_matches(wrong, there, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"there is: {', '.join(sorted(there))}"


def plain(cfg: Any) -> dict[str, Any]:
    """A composed config as a resolved dict of plain values, enums as their names.

    Raises UserError for a key that `+key=value` has added to the schema, or `~key` taken away.
    """
    _check_keys(cfg, "")
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True, throw_on_missing=True)  # type: ignore[return-value]


def _check_keys(node: Any, prefix: str) -> None:
    if not isinstance(node, DictConfig):
        return
    schema, there = OmegaConf.get_type(node), [str(key) for key in node]
    known = [field.name for field in fields(schema)] if is_dataclass(schema) else there
    for key in there:
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown key; {nearest(key, known, prefix)}")
        _check_keys(node._get_node(key), f"{prefix}{key}.")
    for key in known:
        if key not in there:
            raise UserError(f"{prefix}{key}: taken away by ~{prefix}{key}; give it a value instead")
