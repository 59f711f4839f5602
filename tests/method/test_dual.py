"""The dual pass: every rule against torch.func.jvp and central differences, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scm.method import dual

WEIGHT = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
VECTOR = WEIGHT.flatten()[:4]
BIAS = WEIGHT.flatten()[:6]

# name: (function of positive tensors (2, 4, 6, 6), how many)
RULES = {
    "add": (lambda x, y: x + y + 1.5 + torch.add(x, y, alpha=3), 2),
    "add broadcasts a tangent": (lambda x: x[:1] + torch.zeros(2, 4, 6, 6), 1),
    "sub": (lambda x, y: (x - y) - (2.0 - x) - torch.sub(1 - y, x, alpha=3) - BIAS, 2),
    "mul": (lambda x, y: x * y * 3.0 * BIAS + 2 * x, 2),
    "div": (lambda x, y: x / y + x / 3.0 + 2.0 / y + VECTOR[:, None, None] / x, 2),
    "neg": (lambda x: -x, 1),
    "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=2), 2),
    "addcmul, one term constant": (lambda x: torch.addcmul(VECTOR[:, None, None], x, x.mean()), 1),
    "addcmul, factors constant": (lambda x: torch.addcmul(x, WEIGHT[0, 0, 0, 0], VECTOR[0]), 1),
    "matmul": (lambda x, y: x @ y.transpose(-2, -1) + torch.matmul(WEIGHT[0, 0, 0, 0] * x, x), 2),
    "bmm": (lambda x, y: torch.bmm(x.flatten(0, 1), y.flatten(0, 1)), 2),
    "linear": (lambda x: F.linear(x.movedim(1, -1), WEIGHT[:, :, 0, 0], BIAS), 1),
    "conv2d": (lambda x: F.conv2d(x, WEIGHT, BIAS, stride=2, padding=1), 1),
    "conv2d of a dual weight": (lambda x, y: F.conv2d(x, y[:, :, :3, :3], padding=1), 2),
    "cat": (lambda x, y: torch.cat([x, y, torch.ones(2, 1, 6, 6).double()], dim=1), 2),
    "stack": (lambda x, y: torch.stack([x, y], dim=2), 2),
    "chunk": (lambda x: x.chunk(2, dim=1)[1] * 2, 1),
    "split": (lambda x: x.split([1, 3], dim=1)[1], 1),
    "unbind": (lambda x: x.unbind(0)[1], 1),
    "getitem": (lambda x: x[:, 1:3, None, ..., 0], 1),
    "shapes": (
        lambda x: x.reshape(2, -1).view(2, 4, 36).permute(1, 2, 0).unsqueeze(1).flatten(),
        1,
    ),
    "shapes of itself": (lambda x: x.reshape(x.shape[0], x.size(1), -1).transpose(1, 2), 1),
    "movedim, expand": (lambda x: x.movedim(1, -1).expand(3, -1, -1, -1, -1).contiguous(), 1),
    "sum, mean": (lambda x: x.sum() + x.mean(dim=(1, 2), keepdim=True) + x.sum(1, True), 1),
    "interpolate nearest": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), 1),
    "interpolate bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), 1),
    "pixel shuffles": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 3), 1),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), 1),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), 1),
    "exp, log": (lambda x: x.exp() + torch.log(x), 1),
    "trigonometric": (lambda x: x.sin() * torch.cos(x) + torch.tan(x / 2), 1),
    "square, roots": (lambda x: x.square() + x.sqrt() + x.rsqrt() + x.reciprocal(), 1),
    "tanh, sigmoid": (lambda x: torch.tanh(x) * x.sigmoid(), 1),
    "relu": (lambda x: F.relu(x - 1) + torch.relu(1 - x), 1),
    "silu": (lambda x: F.silu(x - 1), 1),
    "gelu": (lambda x: F.gelu(x - 1) + F.gelu(x, approximate="tanh"), 1),
    "softmax": (lambda x: F.softmax(3 * x, dim=1) * x.softmax(-1), 1),
    "layer_norm": (lambda x: F.layer_norm(x, (6,)) + F.layer_norm(x, (6,), BIAS, BIAS), 1),
    "layer_norm of a view": (lambda x: F.layer_norm(x.movedim(1, -1), (4,), eps=1e-3), 1),
    "group_norm": (lambda x: F.group_norm(x, 2) + F.group_norm(x, 2, VECTOR, VECTOR), 1),
    "group_norm of a view": (lambda x: F.group_norm(x.transpose(2, 3)[..., :3], 2), 1),
    "double": (lambda x: x.double().to(torch.float64).to(x.dtype), 1),
    "constants": (lambda x: x * torch.ones_like(x) + torch.zeros_like(x), 1),
    "no rule": (lambda x, y: x.cumsum(1) * torch.hypot(x, y) + torch.where(x > y, x, y), 2),
    "no rule, constant first": (lambda x: torch.hypot(VECTOR[:, None, None], x), 1),
}


def point(count: int, dtype: torch.dtype = torch.float64) -> tuple[tuple, tuple]:
    """Primals in [0.5, 1.5] and normal tangents, (2, 4, 6, 6)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 2, 4, 6, 6, dtype=dtype, generator=generator) + 0.5
    return tuple(x), tuple(torch.randn(x.shape, dtype=dtype, generator=generator))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, layout: torch.memory_format) -> None:
    fn, count = RULES[name]
    xs, dxs = point(count)
    xs = tuple(x.contiguous(memory_format=layout).requires_grad_() for x in xs)

    y, dy = dual.jvp(fn, xs, dxs)
    plain = fn(*xs)
    torch.testing.assert_close(y, plain, rtol=0, atol=0)
    assert type(y) is Tensor and not dy.requires_grad and dy.dtype == y.dtype

    _, reference = torch.func.jvp(fn, tuple(x.detach() for x in xs), dxs)
    torch.testing.assert_close(dy, reference, rtol=1e-12, atol=1e-12)
    h = 1e-5
    above, below = (
        fn(*(x.detach() + s * h * dx for x, dx in zip(xs, dxs, strict=True))) for s in (1, -1)
    )
    torch.testing.assert_close(dy, (above - below) / (2 * h), rtol=1e-6, atol=1e-7)

    cotangent = torch.randn_like(plain)
    got = torch.autograd.grad(y, xs, cotangent, allow_unused=True)
    expected = torch.autograd.grad(plain, xs, cotangent, allow_unused=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_precise_as_functorch_in_low_precision(dtype: torch.dtype) -> None:
    def fn(x: Tensor) -> Tensor:
        h = F.group_norm(F.silu(F.conv2d(x, WEIGHT.to(x.dtype), padding=1)), 2)
        return F.layer_norm((h.softmax(1) * h).movedim(1, -1), (6,))

    def error(dy: Tensor) -> float:
        return ((dy - exact).norm() / exact.norm()).item()

    (x,), (dx,) = point(1)
    _, exact = torch.func.jvp(fn, (x,), (dx,))
    low = (x.to(dtype),), (dx.to(dtype),)
    y, dy = dual.jvp(fn, *low)
    assert y.dtype == dy.dtype == dtype
    assert error(dy) < 1.2 * error(torch.func.jvp(fn, *low)[1])
    assert error(dy) < (1e-5 if dtype == torch.float32 else 0.1)


def test_casts_carry_the_tangent() -> None:
    (x,), (dx,) = point(1)
    y, dy = dual.jvp(lambda x: x.float().bfloat16().to(torch.float32), (x,), (dx,))
    assert y.dtype == dy.dtype == torch.float32
    torch.testing.assert_close(dy, dx.bfloat16().float())


def test_structure_and_constants() -> None:
    (x,), (dx,) = point(1)
    (a, (b, c)), (da, (db, dc)) = dual.jvp(lambda x: (x, [2 * x, torch.ones(3)]), (x,), (dx,))
    assert torch.equal(a, x) and torch.equal(b, 2 * x) and torch.equal(c, torch.ones(3))
    assert torch.equal(da, dx) and torch.equal(db, 2 * dx) and torch.equal(dc, torch.zeros(3))


def test_only_the_value_is_recorded() -> None:
    (x,), (dx,) = point(1)
    weight = WEIGHT.clone().requires_grad_()

    def fn(x: Tensor) -> Tensor:
        return torch.tan(F.conv2d(x, weight).cumsum(1) / 100)  # cumsum: an operation without a rule

    y, dy = dual.jvp(fn, (x,), (dx.requires_grad_(),))
    assert y.requires_grad and not dy.requires_grad
    (got,) = torch.autograd.grad(y.sum(), weight)
    (expected,) = torch.autograd.grad(fn(x).sum(), weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with torch.no_grad():
        y, dy = dual.jvp(fn, (x,), (dx,))
    assert not y.requires_grad and not dy.requires_grad


def test_dropout_shares_its_mask() -> None:
    (x,), (dx,) = point(1)
    torch.manual_seed(3)
    y, dy = dual.jvp(lambda x: F.dropout(x, 0.4), (x,), (dx,))
    torch.manual_seed(3)
    assert torch.equal(y, F.dropout(x, 0.4))
    kept = y != 0
    assert 0.5 < kept.double().mean() < 0.7
    torch.testing.assert_close(dy, torch.where(kept, dx / 0.6, 0.0))
    for fn in (lambda x: F.dropout(x, 0.4, training=False), lambda x: F.dropout(x, 0.0)):
        assert torch.equal(dual.jvp(fn, (x,), (dx,))[1], dx)


def test_an_impossible_operation_is_named() -> None:
    (x,), (dx,) = point(1)

    for name, fn in {
        "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(
            x, x, x, is_causal=True
        ),
        "hstack": lambda x: torch.hstack([x, x]),
        "item": lambda x: x.mean().item(),
        "add_": lambda x: (x * 2).add_(1),
        "__setitem__": lambda x: (x * 2).__setitem__(0, 1.0),
        "mul_": lambda x: torch.ones(2, 4, 6, 6).double().mul_(x),
        "silu": lambda x: F.silu(x, inplace=True),
    }.items():
        with pytest.raises(NotImplementedError, match=name) as error:
            dual.jvp(fn, (x,), (dx,))
        assert "\n" not in str(error.value)


def test_wrong_tangents_are_refused() -> None:
    (x,), (dx,) = point(1)
    with pytest.raises(ValueError, match="differ"):
        dual.jvp(torch.sin, (x,), (dx[:1],))
    with pytest.raises(ValueError, match="differ"):
        dual.jvp(torch.sin, (x,), (dx.float(),))


def test_compiles_to_one_graph() -> None:
    (x,), (dx,) = point(1)

    def fn(x: Tensor) -> Tensor:
        h = F.conv2d(F.silu(F.group_norm(x, 2)), WEIGHT, BIAS)
        return F.layer_norm(h.movedim(1, -1), (6,)).softmax(1)

    compiled = torch.compile(
        lambda x, dx: dual.jvp(fn, (x,), (dx,)), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x, dx), dual.jvp(fn, (x,), (dx,)))
