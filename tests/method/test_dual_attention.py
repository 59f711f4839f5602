"""Attention in the dual pass: against torch.func.jvp of softmax attention written out, and lean."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scm.method import dual, dual_attention

BLOCK = dual_attention.QUERIES


def written_out(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale) v, as a textbook has it."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


def point(queries: int, keys: int | None = None, *, batch=(2, 3), d: int = 4, size: float = 1.0):
    """Primals (q, k, v), q of this size, and tangents, all in float64."""
    generator = torch.Generator().manual_seed(queries)
    shapes = [(*batch, n, d) for n in (queries, keys or queries, keys or queries)]
    draw = [torch.randn(shape, generator=generator).double() for shape in 2 * shapes]
    return (size * draw[0], *draw[1:3]), tuple(draw[3:])


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def check(primals, tangents, scale=None) -> None:
    """Value as torch's own, tangent as torch.func.jvp's, gradients as the written-out ones."""
    primals = tuple(x.clone().requires_grad_() for x in primals)
    y, dy = dual.jvp(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale), primals, tangents
    )
    torch.testing.assert_close(
        y, F.scaled_dot_product_attention(*primals, scale=scale), rtol=0, atol=0
    )
    plain = [x.detach() for x in primals]
    expected, slope = torch.func.jvp(
        lambda q, k, v: written_out(q, k, v, scale), tuple(plain), tangents
    )
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(dy, slope, rtol=1e-10, atol=1e-11)
    assert not dy.requires_grad

    cotangent = torch.randn_like(y)
    got = torch.autograd.grad(y, primals, cotangent)
    wanted = torch.autograd.grad(written_out(*primals, scale), primals, cotangent)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("length", [1, 7, 49, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 45])
def test_it_is_the_derivative_at_every_length(length: int) -> None:
    check(*point(length))


@pytest.mark.parametrize("batch", [(), (5,), (1, 1), (2, 1, 3)])
def test_with_any_number_of_batches_and_heads(batch: tuple[int, ...]) -> None:
    check(*point(9, batch=batch))


@pytest.mark.parametrize(("queries", "keys"), [(3, BLOCK + 9), (BLOCK + 9, 3)])
def test_of_more_keys_than_queries_and_fewer(queries: int, keys: int) -> None:
    check(*point(queries, keys))


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_with_a_scale_of_its_own(scale: float) -> None:
    check(*point(20), scale=scale)


def test_of_views_of_one_tensor() -> None:
    """As a network makes q, k and v: not contiguous."""
    qkv, dqkv = torch.randn(2, 2, 11, 3, 2, 4).double()
    check(*(tuple(x.permute(2, 0, 3, 1, 4).unbind(0)) for x in (qkv, dqkv)))


def test_a_constant_has_no_tangent() -> None:
    (q, k, v), (dq, dk, dv) = point(10)
    for place, (x, dx) in enumerate(((q, dq), (k, dk), (v, dv))):
        given, zeros = [q, k, v], [torch.zeros_like(q)] * 3
        zeros[place] = dx

        def of_one(x, given=given, place=place):
            return F.scaled_dot_product_attention(*given[:place], x, *given[place + 1 :])

        _, dy = dual.jvp(of_one, (x,), (dx,))
        _, slope = torch.func.jvp(written_out, (q, k, v), tuple(zeros))
        torch.testing.assert_close(dy, slope, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_of_50_either_way_leave_it_finite_and_right(dtype: torch.dtype) -> None:
    (q, k, v), tangents = point(BLOCK + 5)
    logits = q @ k.transpose(-2, -1) / 2
    q = q * 50 / logits.abs().amax((-2, -1), keepdim=True)
    low, dlow = (tuple(x.to(dtype) for x in xs) for xs in ((q, k, v), tangents))
    assert 49 < (low[0] @ low[1].transpose(-2, -1) / 2).abs().max() < 51
    y, dy = dual.jvp(F.scaled_dot_product_attention, low, dlow)
    assert y.isfinite().all() and dy.isfinite().all() and y.dtype == dy.dtype == dtype
    exact = torch.func.jvp(
        written_out, tuple(x.double() for x in low), tuple(x.double() for x in dlow)
    )[1]
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert relative(dy, exact) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_its_error_in_low_precision_is_that_of_the_written_out_one(dtype, bound) -> None:
    primals, tangents = point(2 * BLOCK + 45, d=32)
    low, dlow = (tuple(x.to(dtype) for x in xs) for xs in (primals, tangents))
    exact = torch.func.jvp(
        written_out, tuple(x.double() for x in low), tuple(x.double() for x in dlow)
    )[1]
    _, dy = dual.jvp(F.scaled_dot_product_attention, low, dlow)
    _, other = torch.func.jvp(written_out, low, dlow)
    assert relative(dy, exact) < min(bound, 1.3 * relative(other, exact))


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that any operation makes while this is entered."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_no_matrix_of_all_queries_by_all_keys_is_made(monkeypatch) -> None:
    monkeypatch.setattr(dual_attention, "QUERIES", 16)
    primals, tangents = point(200, batch=(2, 3))
    with Largest() as largest:
        _, dy = dual.jvp(F.scaled_dot_product_attention, primals, tangents)
    assert largest.elements == 2 * 3 * 16 * 200
    _, slope = torch.func.jvp(written_out, primals, tangents)
    torch.testing.assert_close(dy, slope, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "more", [{"attn_mask": torch.zeros(9, 9).double()}, {"dropout_p": 0.1}, {"is_causal": True}]
)
def test_what_it_has_no_rule_for_is_refused(more) -> None:
    primals, tangents = point(9)
    with pytest.raises(NotImplementedError, match="attn_mask, dropout_p, is_causal"):
        dual.jvp(lambda *xs: F.scaled_dot_product_attention(*xs, **more), primals, tangents)


def test_it_compiles_to_one_graph() -> None:
    primals, tangents = point(BLOCK + 9)
    compiled = torch.compile(
        lambda xs, dxs: dual.jvp(F.scaled_dot_product_attention, xs, dxs),
        fullgraph=True,
        backend="eager",
    )
    expected = dual.jvp(F.scaled_dot_product_attention, primals, tangents)
    torch.testing.assert_close(compiled(primals, tangents), expected)
