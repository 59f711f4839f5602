"""The dual pass's rules of normalisations: a symmetric Jacobian makes JVP = VJP; and of dropout."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm.method.dual_tensor import Dual, by_functorch, derivative_of, join, rule_for

aten = torch.ops.aten


@derivative_of("softmax")
def _softmax(y: Tensor, x: Dual, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """dy = y (dx - <y, dx>)"""
    return aten._softmax_backward_data(x.tangent.to(y.dtype), y, dim, y.dtype)


@rule_for("layer_norm")
def _layer_norm(
    f: Callable, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """n = (x - mean) rstd;  dn = rstd (dx - <dx> - n <n dx>): the fused backward, given dx."""
    if not isinstance(x, Dual):
        return by_functorch(f, x, shape, weight, bias, eps)
    y, mean, rstd = torch.native_layer_norm(x.value, shape, weight, bias, eps)
    with torch.no_grad():
        dy = aten.native_layer_norm_backward(
            x.tangent, x.value, shape, mean, rstd, None, None, [True, False, False]
        )[0]
        if weight is not None:
            dy = dy * weight
    return join(y, dy)


@rule_for("group_norm")
def _group_norm(
    f: Callable, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """As the layer norm's, over each group of channels."""
    if not isinstance(x, Dual):
        return by_functorch(f, x, groups, weight, bias, eps)
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
    return join(y, dy)


def _group_norm_layout(x: Tensor) -> torch.memory_format:
    """The format that the fused kernels want of all their inputs: on a GPU never channels-last."""
    last = torch.channels_last
    is_last = x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


@rule_for("dropout")
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
