"""One object from one part: the only module that calls a class by its name.

It calls what this project and torch's optimisers define, and what the modules define that the user
grants in the environment variable SCM_MODULES; no file that is loaded can widen that.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from importlib import import_module
from typing import Any, TypeVar

from scm.config.parts import Part
from scm.config.ranges import is_runs
from scm.config.read import plain
from scm.core.errors import UserError

T = TypeVar("T")
OWN = ("scm", "torch.optim")
GRANT = "SCM_MODULES"  # modules between commas
Given = Mapping[str, Callable[[], Any]]  # what a constructor may ask for by name, made when asked


def target(key: str, name: str) -> type:
    """The class `name`; `key` is where it stands. Raises UserError where it may not be called.

    `scm.data.os.system` begins with `scm.` too: what is found must have been defined there.
    """
    check_home(key, name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
        home = found.__module__
    except Exception as error:
        raise UserError(f"{key}={name}: refused, there is no such class ({error})") from error
    if not isinstance(found, type):
        raise UserError(f"{key}={name}: refused, not a class")
    check_home(key, f"{home}.{attribute}")
    return found


def check_home(key: str, name: str) -> None:
    """Raise UserError where `name` is in none of the allowed modules; nothing is imported."""
    modules = (*OWN, *filter(None, os.environ.get(GRANT, "").split(",")))
    if not f"{name}.".startswith(tuple(f"{module}." for module in modules)):
        raise UserError(
            f"{key}={name}: refused, a target must be a class of {', '.join(modules)}; "
            f"{GRANT}=MODULE in the environment grants one of your own"
        )


def construct(base: type[T], key: str, part: Part, given: Given | None = None) -> T:
    """Build the `base` that `part` names, its inner parts first; `key` is where it stands.

    What a constructor asks for beside the part's own settings comes from `given`, by name. Raises
    UserError where the class is refused, none of `base`, or does not take the settings.
    """
    found = target(f"{key}._target_", part._target_)
    if not issubclass(found, base):
        raise UserError(f"{key}._target_={part._target_}: refused, not a {base.__name__}")
    asks = _asks(found)
    arguments = {name: make() for name, make in (given or {}).items() if name in asks}
    own = {f.name: getattr(part, f.name) for f in fields(part) if not is_runs(f)}
    for name, value in (own | own.pop("further")).items():
        if name != "_target_":
            arguments[name] = _argument(f"{key}.{name}", value, given)
    if unknown := [name for name in arguments if name not in asks]:
        raise UserError(f"{key}.{unknown[0]}: {found.__name__} takes no such setting")
    try:
        return found(**arguments)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and not part.further:
            raise
        raise UserError(f"{key}: {error}") from error


def _asks(found: type) -> set[str]:
    """Names that a constructor takes, those that it hands up by `**more` among them."""
    names: set[str] = set()
    for kind in found.__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(kind).parameters.values()
            names |= {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return names


def _argument(key: str, value: Any, given: Given | None) -> Any:
    """A setting as a constructor takes it: parts built, enums by name."""
    if isinstance(value, Part):
        return construct(object, key, value, given)
    if isinstance(value, dict) and "_target_" in value:  # of a class from elsewhere
        further = {name: one for name, one in value.items() if name != "_target_"}
        return construct(object, key, Part(_target_=str(value["_target_"]), further=further), given)
    return value.name if isinstance(value, Enum) else plain(value)
