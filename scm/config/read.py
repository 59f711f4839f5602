"""Any mapping becomes a typed, checked config, and a config becomes a plain mapping again.

It may come from Hydra, out of a run's folder or from a file of weights: all are read alike.
"""

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from scm.config.parts import Part
from scm.config.ranges import RANGE
from scm.core.errors import UserError

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read(mapping: Any, schema: type[T], key: str = "") -> T:
    """`mapping` as a `schema`; `key` is where it stands, for errors.

    Raises UserError, naming the key, for one that is unknown or missing, a value of a wrong type or
    out of its range. A schema with `others_too` takes the keys that it knows and leaves the rest.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{key or 'config'}={mapping}: must be a group of settings")
    if issubclass(schema, Part):
        schema = _schema_of(mapping, schema)
    hints, known = get_type_hints(schema), {f.name: f for f in fields(schema)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    further = {name: value for name, value in mapping.items() if name not in known}
    if further and not getattr(schema, "others_too", False):
        if not _is_foreign(mapping, schema):
            raise _unknown(f"{_dot(key)}{next(iter(further))}", [*known], _dot(key))
        values["further"] = {
            name: _plain_value(value, f"{_dot(key)}{name}") for name, value in further.items()
        }
    for name, one in known.items():
        if name in mapping:
            where = f"{_dot(key)}{name}"
            values[name] = value = _typed(mapping[name], hints[name], where)
            if (held := one.metadata.get(RANGE)) and value is not None and not held.holds(value):
                raise UserError(f"{where}={mapping[name]}: must be {held.words}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"{_dot(key)}{name}: missing; give it a value")
    return schema(**values)


def plain(config: Any) -> Any:
    """A config, or a part of one, as nested dicts and lists of plain values, enums by name."""
    if is_dataclass(config):
        made = {
            f.name: plain(getattr(config, f.name)) for f in fields(config) if f.name != "further"
        }
        return {**made, **getattr(config, "further", {})}
    if isinstance(config, dict):
        return {name: plain(value) for name, value in config.items()}
    if isinstance(config, list):
        return [plain(value) for value in config]
    return config.name if isinstance(config, Enum) else config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are values, an empty dict is one too."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        key: value
        for name, part in config.items()
        for key, value in flatten(part, f"{_dot(prefix)}{name}").items()
    }


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What of a plain config makes a run what it is: not where it is shown, its loggers."""
    return {key: value for key, value in config.items() if key != "logger"}


def differences(mine: dict[str, Any], theirs: dict[str, Any], absent: str = "None") -> str:
    """`a=1 (there: 2), ...` of the keys whose values differ; nothing where none do."""
    changed = [key for key in sorted(mine | theirs) if mine.get(key) != theirs.get(key)]
    shown = ", ".join(
        f"{key}={mine.get(key, absent)} (there: {theirs.get(key, absent)})" for key in changed[:4]
    )
    return shown + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


def nearest(wrong: str, there: Iterable[str], prefix: str = "") -> str:
    """The name that was probably meant, or all that there are; `prefix` stands before each."""
    shown = [name for name in there if name != "further"]
    close = get_close_matches(wrong, shown, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"there is: {', '.join(sorted(shown))}"


def _dot(key: str) -> str:
    return f"{key}." if key else ""


def _unknown(key: str, known: Iterable[str], prefix: str) -> UserError:
    return UserError(f"{key}: unknown key; {nearest(key.removeprefix(prefix), known, prefix)}")


def _schemas(base: type) -> Iterable[type]:
    yield base
    below: list[type] = base.__subclasses__()
    for derived in below:
        yield from _schemas(derived)


def _schema_of(mapping: Mapping[str, Any], base: type) -> Any:
    """The schema of the class that the mapping names: one below `base`, else `base` itself."""
    target = mapping.get("_target_")
    return next((s for s in _schemas(base) if target in s.targets), base)  # type: ignore[attr-defined]


def _is_foreign(mapping: Mapping[str, Any], schema: type) -> bool:
    """Whether a class from elsewhere is named: its own keys are for its constructor to judge."""
    return issubclass(schema, Part) and mapping.get("_target_") not in schema.targets


def _plain_value(value: Any, key: str) -> Any:
    """A value of a class from elsewhere: no reference, and nothing to call but a `_target_`."""
    if isinstance(value, Mapping):
        if name := next((n for n in value if str(n).startswith("_") and n != "_target_"), None):
            raise UserError(f"{key}.{name}={value[name]}: refused, only a _target_ may be named")
        return {name: _plain_value(one, f"{key}.{name}") for name, one in value.items()}
    if isinstance(value, list):
        return [_plain_value(one, key) for one in value]
    if isinstance(value, str):
        return _typed(value, str, key)
    return value


def _typed(value: Any, wanted: Any, key: str) -> Any:
    """The value as `wanted`, a type of the schema's. Raises UserError where it is of another."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return None if value is None else _typed(value, inner[0], key)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value}: must be a list")
        return [_typed(one, inner[0], key) for one in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value}: must be a group of settings")
        return {str(name): _typed(one, inner[1], f"{key}.{name}") for name, one in value.items()}
    if wanted is Any:
        return _plain_value(value, key)
    if is_dataclass(wanted):
        return read(value, wanted, key)  # type: ignore[arg-type]
    if issubclass(wanted, Enum):
        names = list(wanted.__members__)
        if not isinstance(value, str) or value not in names:
            raise UserError(f"{key}={value}: must be one of {', '.join(names)}")
        return wanted[value]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise UserError(f"{key}={value}: must be {WORDS[wanted]}")
    if wanted is str and "${" in value:
        raise UserError(f"{key}={value}: refused, a value may not refer to another one here")
    return value
