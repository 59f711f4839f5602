"""A value with its tangent as a tensor, and how rules for it are registered.

An operation without a rule is left to `torch.func.jvp`, by itself.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Dual(Tensor):
    """A value and its tangent, of one shape and dtype; as a tensor it answers for the value."""

    value: Tensor
    tangent: Tensor

    @staticmethod
    def __new__(cls, value: Tensor, tangent: Tensor) -> "Dual":
        self = Tensor._make_subclass(cls, value.detach())
        self.value = value
        self.tangent = tangent
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("inplace"):
            raise in_place(func)
        with torch._C.DisableTorchFunctionSubclass():
            return RULES.get(func, by_functorch)(func, *args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Dual(value={self.value}, tangent={self.tangent})"


# ---------------------------------------------------------------- values, tangents, structures


def map_leaves(f: Callable, tree: Any) -> Any:
    """f on the leaves of nested tuples and lists."""
    if isinstance(tree, tuple | list):
        return tuple(map_leaves(f, leaf) for leaf in tree)
    return f(tree)


def value_of(x: Any) -> Any:
    return x.value if isinstance(x, Dual) else x


def tangent_of(x: Any) -> Tensor | None:
    """dx, or None for a constant."""
    return x.tangent if isinstance(x, Dual) else None


def tangent_or_zero(x: Tensor) -> Tensor:
    return x.tangent if isinstance(x, Dual) else torch.zeros_like(x)


def total(*terms: Tensor | None) -> Tensor:
    """The sum of the terms that are not zero (None); at least one is not."""
    first, *others = (term for term in terms if term is not None)
    return sum(others, first)


def join(y: Any, dy: Any) -> Any:
    """Dual(y, dy), leaf by leaf; dy takes y's dtype and is broadcast to y's shape."""
    if isinstance(y, tuple | list):
        return tuple(join(*pair) for pair in zip(y, dy, strict=True))
    return Dual(y, dy.to(y.dtype).expand_as(y))


# ---------------------------------------------------------------- how a rule is registered

RULES: dict[Any, Callable] = {}


def register(names: str, rule: Callable) -> None:
    """Give the rule to every torch function, functional and method with one of these names."""
    for name in names.split():
        for home in (torch, F, Tensor):
            if hasattr(home, name):
                RULES[getattr(home, name)] = rule


def rule_for(names: str) -> Callable:
    """Register (f, *args) -> Dual, a rule that computes value and tangent itself."""

    def decorate(rule: Callable) -> Callable:
        register(names, rule)
        return rule

    return decorate


def derivative_of(names: str) -> Callable:
    """Register (y, *args) -> dy, where y = f(values of args) and some of args are Duals."""

    def decorate(derivative: Callable) -> Callable:
        def rule(f: Callable, *args: Any, **kwargs: Any) -> Any:
            y = f(
                *(map_leaves(value_of, a) for a in args),
                **{k: value_of(a) for k, a in kwargs.items()},
            )
            with torch.no_grad():
                dy = derivative(y, *args, **kwargs)
            return join(y, dy)

        register(names, rule)
        return derivative

    return decorate


def elementwise(names: str, pushforward: Callable[..., Tensor]) -> None:
    """Register y = f(x) with dy = pushforward(dx, x, y, *parameters of f)."""

    @derivative_of(names)
    def derivative(y: Tensor, x: Dual, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        return pushforward(x.tangent, x.value, y, *args, **kwargs)


def linear(f: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """d f(x) = f(dx): views, sums, resampling, casts."""
    if not isinstance(x, Dual):
        return by_functorch(f, x, *args, **kwargs)
    y = f(x.value, *args, **kwargs)
    with torch.no_grad():
        dy = f(x.tangent, *args, **kwargs)
    return join(y, dy)


def constant(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """Metadata, comparisons and new tensors: the tangent plays no part."""
    return f(*map(value_of, args), **{k: value_of(a) for k, a in kwargs.items()})


def in_place(f: Callable) -> NotImplementedError:
    """The error of an operation that changes its operand."""
    name = getattr(f, "__name__", repr(f))
    return NotImplementedError(f"dual pass: {name!r} works in place, which has no rule")


def by_functorch(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """An operation without a rule: ``torch.func.jvp`` of it alone, the tangent's record dropped."""
    name = getattr(f, "__name__", repr(f))
    if name == "__setitem__" or re.search("[^_]_$", name):
        raise in_place(f)
    duals = [a for a in (*args, *kwargs.values()) if isinstance(a, Dual)]
    if not duals:
        raise NotImplementedError(f"dual pass: no rule for the operation {name!r}: write one")

    def of_duals(*values: Tensor) -> Any:
        left = iter(values)
        new_args = [next(left) if isinstance(a, Dual) else a for a in args]
        new_kwargs = {k: next(left) if isinstance(a, Dual) else a for k, a in kwargs.items()}
        return f(*new_args, **new_kwargs)

    try:
        y, dy = torch.func.jvp(  # type: ignore[misc]
            of_duals, tuple(a.value for a in duals), tuple(a.tangent for a in duals)
        )
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise NotImplementedError(
            f"dual pass: the operation {name!r} has no rule and torch.func.jvp refuses it: {reason}"
        ) from error
    return join(y, map_leaves(Tensor.detach, dy))
