"""The dual pass's rule of softmax attention: torch's fused value, a tangent by blocks of queries.

torch's fused kernels have no forward derivative, and attention written out holds matrices of all
queries by all keys. Here such matrices exist for one block of queries at a time, and only for the
tangent.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm.method.dual_tensor import Dual, join, rule_for, tangent_or_zero, value_of

QUERIES = 128  # in a block: among the fastest at every length (docs/performance.md, what was tried)


@rule_for("scaled_dot_product_attention")
def _attention(
    f: Callable,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    """y = softmax(q k^T scale) v, each (..., tokens, d); scale None: 1 / sqrt(d)."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise NotImplementedError(
            "dual pass: scaled_dot_product_attention has no rule for attn_mask, dropout_p, "
            "is_causal and enable_gqa"
        )
    q, k, v = value_of(query), value_of(key), value_of(value)
    y = f(q, k, v, scale=scale)
    with torch.no_grad():
        dq, dk, dv = tangent_or_zero(query), tangent_or_zero(key), tangent_or_zero(value)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        dy = attention_tangent(q * scale, k, v, dq * scale, dk, dv, y)
    return join(y, dy)


def attention_tangent(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, y: Tensor
) -> Tensor:
    """dy = P dv + (P * dS) v - rowsum(P * dS) y, of y = P v with P = softmax(S) and S = q k^T.

    dS = dq k^T + q dk^T. All are (..., tokens, d), q already multiplied by the scale; matrices of
    queries by keys exist for `QUERIES` queries at a time.
    """
    k, v, dk, dv = (x.contiguous() for x in (k, v, dk, dv))  # once, and not in every block
    dy = torch.empty_like(y)
    for start in range(0, q.shape[-2], QUERIES):
        rows = slice(start, start + QUERIES)
        q_rows, dq_rows = q[..., rows, :], dq[..., rows, :]
        P = (q_rows @ k.mT).softmax(dim=-1)
        P_dS = P * (dq_rows @ k.mT + q_rows @ dk.mT)
        drift = P_dS.sum(dim=-1, keepdim=True)  # what a shift of a whole row of S would do
        dy[..., rows, :] = P @ dv + P_dS @ v - drift * y[..., rows, :]
    return dy
