"""Muon against its closed forms: the polar factor, the size of a step, torch's AdamW and Muon."""

import copy

import pytest
import torch
from torch import nn

from scm.training.muon import Muon, orthogonal

GIVEN = {"momentum": 0.9, "betas": (0.8, 0.95), "eps": 1e-8}


def muon(params, lr=0.1, weight_decay=0.0, **more):
    settings = {**GIVEN, "lr": lr, "weight_decay": weight_decay, "dtype": torch.float32, **more}
    return Muon(params, **settings)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_it_keeps_singular_vectors_and_levels_singular_values(shape):
    """What is left of a matrix U S V^T is near U V^T, whatever S was; each of a stack by itself."""
    torch.manual_seed(0)
    k = min(shape)
    u, v = (torch.linalg.qr(torch.randn(size, k, dtype=torch.double))[0] for size in shape)
    matrix = u @ torch.diag(torch.logspace(-1, 0, k).double()) @ v.mT
    stack = torch.stack([scale * matrix for scale in (1e-4, 1.0, 300.0)])
    for matrix in orthogonal(stack):
        inner = u.mT @ matrix @ v
        values = inner.diagonal()
        torch.testing.assert_close(inner, torch.diag(values), rtol=0, atol=1e-10)
        torch.testing.assert_close(u @ inner @ v.mT, matrix, rtol=0, atol=1e-10)
        assert values.min() > 0.6 and values.max() < 1.3


def test_a_step_of_a_matrix_is_torchs_muon():
    """Over three steps with weight decay; a convolution moves as the matrix that it is."""
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(4, 18))
    conv = nn.Parameter(matrix.detach().clone().view(4, 2, 3, 3))
    other = nn.Parameter(matrix.detach().clone())
    mine = muon([matrix, conv], weight_decay=0.2)
    theirs = torch.optim.Muon(
        [other], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    start = other.detach().clone()
    for _ in range(3):
        grad = torch.randn(4, 18)
        matrix.grad, conv.grad, other.grad = grad, grad.view_as(conv), grad.clone()
        mine.step()
        theirs.step()
    moved = (other - start).norm()
    assert (matrix - other).norm() < 0.02 * moved  # torch's is computed in bfloat16
    assert torch.equal(conv.flatten(1), matrix)


def test_a_step_of_the_rest_is_torchs_adamw():
    torch.manual_seed(0)
    bias, other = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    other.data.copy_(bias)
    mine = muon([bias], weight_decay=0.2)
    theirs = torch.optim.AdamW([other], lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.2)
    for _ in range(3):
        bias.grad = torch.randn(5)
        other.grad = bias.grad.clone()
        mine.step()
        theirs.step()
        torch.testing.assert_close(bias, other, rtol=1e-6, atol=1e-6)


def test_both_kinds_step_equally_far_at_one_rate():
    """0.2 lr in root mean square, which is Adam's usual step; its first step is all of lr."""
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.zeros(64, 64, 3, 3)), nn.Parameter(torch.zeros(7))
    optimizer = muon([matrix, bias])
    matrix.grad, bias.grad = torch.randn_like(matrix), torch.randn(7)
    optimizer.step()
    assert matrix.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.3)
    torch.testing.assert_close(bias.abs(), torch.full((7,), 0.1))


def test_the_schedules_rate_is_the_step_and_what_has_no_gradient_stays():
    one, left = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = muon([one, left])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    one.grad = torch.randn(3, 3)
    optimizer.step()
    assert torch.equal(one, torch.ones(3, 3)) and torch.equal(left, torch.ones(3, 3))
    assert optimizer.defaults["lr"] == 0.1


def test_its_state_goes_on_bit_for_bit():
    torch.manual_seed(0)
    grads = [torch.randn(6, 4) for _ in range(4)]

    def run(optimizer, p, some):
        for grad in some:
            p.grad = grad.clone()
            optimizer.step()

    p = nn.Parameter(torch.randn(6, 4))
    q, r = nn.Parameter(p.detach().clone()), nn.Parameter(p.detach().clone())
    run(muon([p]), p, grads)
    first = muon([q])
    run(first, q, grads[:2])
    r.data.copy_(q)
    second = muon([r])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, r, grads[2:])
    assert torch.equal(p, r)
