"""Which option of conf/ a part of a configuration comes from, by the class and values it has."""

from functools import cache
from typing import Any

import yaml

from scm.config.read import flatten
from scm.core.files import CONF

TARGET = "._target_"


def named(config: dict[str, Any]) -> dict[str, str]:
    """The option of each part of a flat config that is a group's: {"weighting": "inv_sigma"}.

    Of several options of one class that which shares most values; for a class that no option has,
    the class's own name.
    """
    found = {}
    for part in (key.removesuffix(TARGET) for key in config if key.endswith(TARGET)):
        target = config[part + TARGET]
        if options := _options(part.replace(".", "/")):
            mine = {name: own for name, own in options.items() if own.get("_target_") == target}
            shared = {
                name: sum(config.get(f"{part}.{key}", ...) == value for key, value in own.items())
                for name, own in mine.items()
            }
            found[part] = max(shared, key=shared.__getitem__, default=target.rpartition(".")[2])
    return found


@cache
def _options(group: str) -> dict[str, dict[str, Any]]:
    """The flat values of every option of a group that is one part; nothing for another key."""
    files = sorted((CONF / group).glob("*.yaml"))
    options = {file.stem: flatten(yaml.safe_load(file.read_text())) for file in files}
    return {name: option for name, option in options.items() if "_target_" in option}
