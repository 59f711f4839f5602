"""One object from one config: the only module that calls `instantiate`.

It refuses every `_target_` that is not a class of this project's or an optimiser of torch's before
it calls anything, and turns a constructor's ValueError into one line for the user. An OSError of a
constructor's comes out as it is.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from scm import validate
from scm.errors import UserError

T = TypeVar("T")


def construct(base: Callable[..., T], key: str, config: dict[str, Any], **more: Any) -> T:
    """Build the `base` that `config["_target_"]` names; `key` is where it stands, for errors."""
    _refuse_calls(config, key)
    if not issubclass(get_class(config["_target_"]), base):  # type: ignore[arg-type]
        raise UserError(f"{key}._target_={config['_target_']}: refused, not a {base.__name__}")
    try:
        return instantiate(config, **more, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise UserError(f"{key}: {error.__cause__}") from error
        if isinstance(error.__cause__, OSError):  # a file that may not be read
            raise error.__cause__ from error
        raise


def _refuse_calls(node: Any, key: str) -> None:
    """Nothing in `config` may call, be looked up or resolved, but its `_target_`s; lists too."""
    if isinstance(node, list):
        for part in node:
            _refuse_calls(part, key)
    elif isinstance(node, dict):
        for name, part in node.items():
            where = f"{key}.{name}"
            if name == "_target_":
                _refuse_foreign(where, part)
            elif str(name).startswith("_"):
                raise UserError(f"{where}={part}: refused, only a _target_ may be named")
            _refuse_calls(part, where)
    elif isinstance(node, str) and "${" in node:
        raise UserError(f"{key}={node}: refused, a value may not refer to another one here")


def _refuse_foreign(where: str, target: str) -> None:
    """`scm.data.os.system` begins with `scm.` too: what is found must have been defined there."""
    validate.check_target(where, target)
    try:
        home = get_class(target).__module__
    except Exception as error:
        raise UserError(f"{where}={target}: refused, there is no such class") from error
    if not f"{home}.".startswith(validate.TARGET_PREFIXES):
        raise UserError(f"{where}={target}: refused, defined in {home}, outside this project")
