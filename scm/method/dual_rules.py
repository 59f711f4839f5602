"""The dual pass's rules of linear operations, sums, products and elementwise functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm.method.dual_tensor import (
    RULES,
    Dual,
    by_functorch,
    constant,
    derivative_of,
    elementwise,
    join,
    linear,
    register,
    rule_for,
    tangent_of,
    tangent_or_zero,
    total,
    value_of,
)

aten = torch.ops.aten

# ---------------------------------------------------------------- d f(x) = f(dx), and constants

for _names in (
    "reshape view flatten unflatten permute transpose movedim squeeze unsqueeze expand"
    " contiguous clone __getitem__ chunk split unbind narrow select repeat repeat_interleave",
    "sum mean neg __neg__ avg_pool2d adaptive_avg_pool2d interpolate pixel_shuffle pixel_unshuffle"
    " roll flip",
    "to float double half bfloat16 type_as",
):
    register(_names, linear)

register(
    "dim size stride numel is_floating_point is_complex is_contiguous element_size __len__"
    " eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isfinite argmax argmin"
    " zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty"
    " new_tensor new_full",
    constant,
)
for _name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad"):
    RULES[getattr(Tensor, _name).__get__] = constant
for _name in ("T", "mT"):
    RULES[getattr(Tensor, _name).__get__] = linear


# ---------------------------------------------------------------- sums and products


@derivative_of("add __add__ __radd__")
def _add(y: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    db = tangent_of(b)
    return total(tangent_of(a), db if db is None or alpha == 1 else alpha * db)


@derivative_of("sub subtract __sub__")
def _sub(y: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    db = tangent_of(b)
    return total(tangent_of(a), None if db is None else -alpha * db)


@derivative_of("__rsub__ rsub")
def _rsub(y: Tensor, a: Any, b: Any) -> Tensor:
    return _sub(y, b, a)


def _product(times: Callable) -> Callable:
    """d(a b) = da b + a db, for any bilinear ``times``."""

    def derivative(y: Tensor, a: Any, b: Any) -> Tensor:
        da, db = tangent_of(a), tangent_of(b)
        return total(
            None if da is None else times(da, value_of(b)),
            None if db is None else times(value_of(a), db),
        )

    return derivative


derivative_of("mul multiply __mul__ __rmul__")(_product(lambda a, b: a * b))
derivative_of("matmul __matmul__ bmm mm")(_product(torch.matmul))


@derivative_of("div divide true_divide __truediv__ __div__")
def _div(y: Tensor, a: Any, b: Any) -> Tensor:
    """d(a / b) = (da - y db) / b"""
    da, db = tangent_of(a), tangent_of(b)
    return total(da, None if db is None else -y * db) / value_of(b)


@derivative_of("__rtruediv__ __rdiv__")
def _rdiv(y: Tensor, b: Any, a: Any) -> Tensor:
    return _div(y, a, b)


@derivative_of("addcmul")
def _addcmul(y: Tensor, c: Any, a: Any, b: Any, *, value: float = 1) -> Tensor:
    """d(c + a b) = dc + a db + da b"""
    dy, da, db = tangent_of(c), tangent_of(a), tangent_of(b)
    if dy is None:
        dy = torch.zeros((), dtype=y.dtype, device=y.device)
    if db is not None:
        dy = torch.addcmul(dy, value_of(a), db, value=value)
    return dy if da is None else torch.addcmul(dy, da, value_of(b), value=value)


@derivative_of("cat concat stack")
def _cat(y: Tensor, parts: Any, dim: int = 0) -> Tensor:
    joined = torch.cat if y.ndim == parts[0].ndim else torch.stack
    return joined([tangent_or_zero(part) for part in parts], dim)


@rule_for("linear conv1d conv2d conv_transpose2d")
def _affine(f: Callable, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """d(W x + b) = W dx; the same weight tensor, cast once, serves both."""
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return by_functorch(f, x, weight, bias, *args, **kwargs)
    y = f(x.value, weight, bias, *args, **kwargs)
    with torch.no_grad():
        dy = f(x.tangent, weight, None, *args, **kwargs)
    return join(y, dy)


# ---------------------------------------------------------------- elementwise functions

elementwise("exp", lambda dx, x, y: dx * y)
elementwise("log", lambda dx, x, y: dx / x)
elementwise("sin", lambda dx, x, y: dx * x.cos())
elementwise("cos", lambda dx, x, y: -dx * x.sin())
elementwise("tan", lambda dx, x, y: dx * (1 + y * y))
elementwise("tanh", lambda dx, x, y: dx * (1 - y * y))
elementwise("sigmoid", lambda dx, x, y: dx * y * (1 - y))
elementwise("square", lambda dx, x, y: 2 * x * dx)
elementwise("sqrt", lambda dx, x, y: dx / (2 * y))
elementwise("rsqrt", lambda dx, x, y: -dx * y / (2 * x))
elementwise("reciprocal", lambda dx, x, y: -dx * y * y)
elementwise("relu", lambda dx, x, y: dx * (y > 0))
elementwise("silu", lambda dx, x, y: aten.silu_backward(dx, x))
elementwise("gelu", lambda dx, x, y, **kw: aten.gelu_backward(dx, x, **kw))
