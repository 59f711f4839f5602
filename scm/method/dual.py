"""The dual pass: a network's value and its directional derivative in one forward.

A ``Dual`` carries (value, tangent) through unchanged modules; each operation has one rule that
says how its tangent follows.  The value is computed by the operation itself, recorded for autograd
and bit-identical to the plain forward; the tangent is computed under ``no_grad``.  ``jvp``
has the call and the result of ``torch.func.jvp``.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


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
        name = getattr(func, "__name__", repr(func))
        if kwargs.get("inplace") or name == "__setitem__" or re.search("[^_]_$", name):
            raise NotImplementedError(f"dual pass: {name!r} works in place, which has no rule")
        with torch._C.DisableTorchFunctionSubclass():
            return _RULES.get(func, _by_functorch)(func, *args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Dual(value={self.value}, tangent={self.tangent})"


def jvp(fn: Callable, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """(fn(x), dfn(x)[dx]) in one pass; as ``torch.func.jvp``, but only the value is recorded.

    primals, tangents: tensors of equal shapes and floating dtypes.  fn returns a tensor or
    a tuple or list of tensors; both results have its structure.  ValueError: shapes or dtypes
    differ.  NotImplementedError: an operation of fn has no tangent; the message names it.
    """
    for x, dx in zip(primals, tangents, strict=True):
        if x.shape != dx.shape or x.dtype != dx.dtype:
            raise ValueError(
                f"primal {tuple(x.shape)} {x.dtype} and tangent {tuple(dx.shape)} {dx.dtype} differ"
            )
    out = fn(*(Dual(x, dx.detach()) for x, dx in zip(primals, tangents, strict=True)))
    return _map(_value, out), _map(_tangent_or_zero, out)


# ---------------------------------------------------------------- values, tangents, structures


def _map(f: Callable, tree: Any) -> Any:
    """f on the leaves of nested tuples and lists."""
    if isinstance(tree, tuple | list):
        return tuple(_map(f, leaf) for leaf in tree)
    return f(tree)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Dual) else x


def _tangent(x: Any) -> Tensor | None:
    """dx, or None for a constant."""
    return x.tangent if isinstance(x, Dual) else None


def _tangent_or_zero(x: Tensor) -> Tensor:
    return x.tangent if isinstance(x, Dual) else torch.zeros_like(x)


def _sum(*terms: Tensor | None) -> Tensor:
    """The sum of the terms that are not zero (None); at least one is not."""
    first, *others = (term for term in terms if term is not None)
    return sum(others, first)


def _join(y: Any, dy: Any) -> Any:
    """Dual(y, dy), leaf by leaf; dy takes y's dtype and is broadcast to y's shape."""
    if isinstance(y, tuple | list):
        return tuple(_join(*pair) for pair in zip(y, dy, strict=True))
    return Dual(y, dy.to(y.dtype).expand_as(y))


# ---------------------------------------------------------------- how a rule is registered

_RULES: dict[Any, Callable] = {}


def _register(names: str, rule: Callable) -> None:
    """Give the rule to every torch function, functional and method with one of these names."""
    for name in names.split():
        for home in (torch, F, Tensor):
            if hasattr(home, name):
                _RULES[getattr(home, name)] = rule


def _pass(names: str) -> Callable:
    """Register (f, *args) -> Dual, a rule that computes value and tangent itself."""

    def decorate(rule: Callable) -> Callable:
        _register(names, rule)
        return rule

    return decorate


def _derivative(names: str) -> Callable:
    """Register (y, *args) -> dy, where y = f(values of args) and some of args are Duals."""

    def decorate(derivative: Callable) -> Callable:
        def rule(f: Callable, *args: Any, **kwargs: Any) -> Any:
            y = f(*(_map(_value, a) for a in args), **{k: _value(a) for k, a in kwargs.items()})
            with torch.no_grad():
                dy = derivative(y, *args, **kwargs)
            return _join(y, dy)

        _register(names, rule)
        return derivative

    return decorate


def _elementwise(names: str, pushforward: Callable[..., Tensor]) -> None:
    """Register y = f(x) with dy = pushforward(dx, x, y, *parameters of f)."""

    @_derivative(names)
    def derivative(y: Tensor, x: Dual, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        return pushforward(x.tangent, x.value, y, *args, **kwargs)


def _linear(f: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """d f(x) = f(dx): views, sums, resampling, casts."""
    if not isinstance(x, Dual):
        return _by_functorch(f, x, *args, **kwargs)
    y = f(x.value, *args, **kwargs)
    with torch.no_grad():
        dy = f(x.tangent, *args, **kwargs)
    return _join(y, dy)


def _constant(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """Metadata, comparisons and new tensors: the tangent plays no part."""
    return f(*map(_value, args), **{k: _value(a) for k, a in kwargs.items()})


def _by_functorch(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """An operation without a rule: ``torch.func.jvp`` of it alone, the tangent's record dropped."""
    name = getattr(f, "__name__", repr(f))
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
    return _join(y, _map(Tensor.detach, dy))


# ---------------------------------------------------------------- d f(x) = f(dx), and constants

for _names in (
    "reshape view flatten unflatten permute transpose movedim squeeze unsqueeze expand"
    " contiguous clone __getitem__ chunk split unbind narrow select repeat repeat_interleave",
    "sum mean neg __neg__ avg_pool2d adaptive_avg_pool2d interpolate pixel_shuffle pixel_unshuffle"
    " roll flip",
    "to float double half bfloat16 type_as",
):
    _register(_names, _linear)

_register(
    "dim size stride numel is_floating_point is_complex is_contiguous element_size __len__"
    " eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isfinite argmax argmin"
    " zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty"
    " new_tensor new_full",
    _constant,
)
for _name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad"):
    _RULES[getattr(Tensor, _name).__get__] = _constant
for _name in ("T", "mT"):
    _RULES[getattr(Tensor, _name).__get__] = _linear


# ---------------------------------------------------------------- sums and products


@_derivative("add __add__ __radd__")
def _add(y: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    db = _tangent(b)
    return _sum(_tangent(a), db if db is None or alpha == 1 else alpha * db)


@_derivative("sub subtract __sub__")
def _sub(y: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    db = _tangent(b)
    return _sum(_tangent(a), None if db is None else -alpha * db)


@_derivative("__rsub__ rsub")
def _rsub(y: Tensor, a: Any, b: Any) -> Tensor:
    return _sub(y, b, a)


def _product(times: Callable) -> Callable:
    """d(a b) = da b + a db, for any bilinear ``times``."""

    def derivative(y: Tensor, a: Any, b: Any) -> Tensor:
        da, db = _tangent(a), _tangent(b)
        return _sum(
            None if da is None else times(da, _value(b)),
            None if db is None else times(_value(a), db),
        )

    return derivative


_derivative("mul multiply __mul__ __rmul__")(_product(lambda a, b: a * b))
_derivative("matmul __matmul__ bmm mm")(_product(torch.matmul))


@_derivative("div divide true_divide __truediv__ __div__")
def _div(y: Tensor, a: Any, b: Any) -> Tensor:
    """d(a / b) = (da - y db) / b"""
    da, db = _tangent(a), _tangent(b)
    return _sum(da, None if db is None else -y * db) / _value(b)


@_derivative("__rtruediv__ __rdiv__")
def _rdiv(y: Tensor, b: Any, a: Any) -> Tensor:
    return _div(y, a, b)


@_derivative("addcmul")
def _addcmul(y: Tensor, c: Any, a: Any, b: Any, *, value: float = 1) -> Tensor:
    """d(c + a b) = dc + a db + da b"""
    dy, da, db = _tangent(c), _tangent(a), _tangent(b)
    if dy is None:
        dy = torch.zeros((), dtype=y.dtype, device=y.device)
    if db is not None:
        dy = torch.addcmul(dy, _value(a), db, value=value)
    return dy if da is None else torch.addcmul(dy, da, _value(b), value=value)


@_derivative("cat concat stack")
def _cat(y: Tensor, parts: Any, dim: int = 0) -> Tensor:
    joined = torch.cat if y.ndim == parts[0].ndim else torch.stack
    return joined([_tangent_or_zero(part) for part in parts], dim)


@_pass("linear conv1d conv2d conv_transpose2d")
def _affine(f: Callable, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """d(W x + b) = W dx; the same weight tensor, cast once, serves both."""
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return _by_functorch(f, x, weight, bias, *args, **kwargs)
    y = f(x.value, weight, bias, *args, **kwargs)
    with torch.no_grad():
        dy = f(x.tangent, weight, None, *args, **kwargs)
    return _join(y, dy)


# ---------------------------------------------------------------- elementwise functions

_elementwise("exp", lambda dx, x, y: dx * y)
_elementwise("log", lambda dx, x, y: dx / x)
_elementwise("sin", lambda dx, x, y: dx * x.cos())
_elementwise("cos", lambda dx, x, y: -dx * x.sin())
_elementwise("tan", lambda dx, x, y: dx * (1 + y * y))
_elementwise("tanh", lambda dx, x, y: dx * (1 - y * y))
_elementwise("sigmoid", lambda dx, x, y: dx * y * (1 - y))
_elementwise("square", lambda dx, x, y: 2 * x * dx)
_elementwise("sqrt", lambda dx, x, y: dx / (2 * y))
_elementwise("rsqrt", lambda dx, x, y: -dx * y / (2 * x))
_elementwise("reciprocal", lambda dx, x, y: -dx * y * y)
_elementwise("relu", lambda dx, x, y: dx * (y > 0))
_elementwise("silu", lambda dx, x, y: aten.silu_backward(dx, x))
_elementwise("gelu", lambda dx, x, y, **kw: aten.gelu_backward(dx, x, **kw))


# ------------------------------------------- normalisations: a symmetric Jacobian makes JVP = VJP


@_derivative("softmax")
def _softmax(y: Tensor, x: Dual, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """dy = y (dx - <y, dx>)"""
    return aten._softmax_backward_data(x.tangent.to(y.dtype), y, dim, y.dtype)


@_pass("layer_norm")
def _layer_norm(
    f: Callable, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """n = (x - mean) rstd;  dn = rstd (dx - <dx> - n <n dx>): the fused backward, given dx."""
    if not isinstance(x, Dual):
        return _by_functorch(f, x, shape, weight, bias, eps)
    y, mean, rstd = torch.native_layer_norm(x.value, shape, weight, bias, eps)
    with torch.no_grad():
        dy = aten.native_layer_norm_backward(
            x.tangent, x.value, shape, mean, rstd, None, None, [True, False, False]
        )[0]
        if weight is not None:
            dy = dy * weight
    return _join(y, dy)


@_pass("group_norm")
def _group_norm(
    f: Callable, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """As the layer norm's, over each group of channels."""
    if not isinstance(x, Dual):
        return _by_functorch(f, x, groups, weight, bias, eps)
    batch, channels, *space = x.value.shape
    sizes = (batch, channels, x.value[0, 0].numel(), groups)
    layout = _group_norm_layout(x.value)
    value = x.value.contiguous(memory_format=layout)
    y, mean, rstd = torch.native_group_norm(value, weight, bias, *sizes, eps)
    with torch.no_grad():
        dx = x.tangent.contiguous(memory_format=layout)
        dy = aten.native_group_norm_backward(
            dx, value, mean, rstd, None, *sizes, [True, False, False]
        )[0]
        if weight is not None:
            dy = dy * weight.reshape(-1, *[1] * len(space))
    return _join(y, dy)


def _group_norm_layout(x: Tensor) -> torch.memory_format:
    """The format that the fused kernels want of all their inputs: on a GPU never channels-last."""
    last = torch.channels_last
    is_last = x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


@_pass("dropout")
def _dropout(
    f: Callable, x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Dual:
    """One mask for both: y = m x, dy = m dx."""
    if not training or p == 0:
        return x
    with torch.no_grad():
        mask = f(torch.ones_like(x.value), p, training)
        dy = x.tangent * mask
    return Dual(x.value * mask, dy)
