"""The dual pass: a network's value and its directional derivative in one forward.

A `Dual` carries (value, tangent) through unchanged modules; each operation has one rule that says
how its tangent follows.  The value is computed by the operation itself, recorded for autograd and
bit-identical to the plain forward; the tangent is computed under `no_grad`.  `jvp` has the call
and the result of `torch.func.jvp`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from scm.method import dual_attention, dual_norms, dual_rules  # noqa: F401  (they register rules)
from scm.method.dual_tensor import Dual, map_leaves, tangent_or_zero, value_of


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
    return map_leaves(value_of, out), map_leaves(tangent_or_zero, out)
