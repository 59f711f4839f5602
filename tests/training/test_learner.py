"""The averaged weights; a step that is not finite changes none of a learner's parts."""

import copy
import math

import pytest
import torch
from torch import nn

from scm.storage import store
from scm.training import learner
from scm.training.learner import Ema, Learner


def test_ema_follows_the_definition_and_leaves_the_network_alone():
    net = nn.Linear(3, 2)
    start = net.weight.detach().clone()
    ema = Ema(net)
    expected = start.clone()
    for step in range(1, 5):
        with torch.no_grad():
            net.weight.copy_(start + step)
        ema.update(0.9)
        expected = 0.9 * expected + 0.1 * (start + step)
    torch.testing.assert_close(ema.net.weight, expected)
    assert torch.equal(net.weight, start + 4)
    assert not any(p.requires_grad for p in ema.net.parameters()) and not ema.net.training


def test_decay_0_copies_and_decay_1_keeps():
    net = nn.Linear(2, 2)
    ema, before = Ema(net), net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(1.0)
    assert torch.equal(ema.net.weight, before)
    ema.update(0.0)
    assert torch.equal(ema.net.weight, net.weight)


def started():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return Learner(net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=True))


def step(learner, gradient, *, finite):
    for parameter in learner.net.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    learner.take_step(torch.tensor(finite), 0.5)


def contents(learner):
    saved = learner.state_dict()
    return store.digest([saved[part] for part in ("net", "ema", "optimizer")])


@pytest.mark.parametrize("by_itself", [False, True], ids=["flag read", "flag on the device"])
def test_a_skipped_step_changes_weights_optimiser_and_ema_by_no_bit(by_itself, monkeypatch):
    """Both ways on a CPU, where fused AdamW knows found_inf too."""
    monkeypatch.setattr(learner, "skips_by_itself", lambda optimizer, device: by_itself)
    state, never_skipped = started(), started()
    for one in (state, never_skipped):
        step(one, 0.3, finite=True)
    before = contents(state)
    step(state, math.nan, finite=False)
    step(state, math.inf, finite=False)
    assert contents(state) == before
    assert (int(state.skipped.total), int(state.skipped.in_a_row)) == (2, 2)

    for one in (state, never_skipped):
        step(one, -0.7, finite=True)
    assert contents(state) == contents(never_skipped) != before
    assert (int(state.skipped.total), int(state.skipped.in_a_row)) == (2, 0)


def test_the_optimisers_that_skip_by_themselves():
    """RAdam has no fused kernel; a CPU reads the flag at no cost."""
    parameters = [nn.Parameter(torch.ones(2))]
    fused = torch.optim.AdamW(parameters, fused=True)
    assert learner.skips_by_itself(fused, torch.device("cuda"))
    assert not learner.skips_by_itself(fused, torch.device("cpu"))
    assert not learner.skips_by_itself(torch.optim.RAdam(parameters), torch.device("cuda"))


def test_the_emas_two_ways_agree():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    one, other = Ema(net), Ema(net)
    with torch.no_grad():
        net.weight.add_(torch.randn(2, 3))
    one.update(0.9)
    other.update_where(torch.tensor(True), 0.9)
    torch.testing.assert_close(one.net.weight, other.net.weight, rtol=1e-6, atol=1e-7)


def test_a_learner_goes_on_where_another_stood():
    """Weights, average, optimiser and counters; the peak rate is the one that it was made with."""
    one, other = started(), started()
    step(one, 0.3, finite=True)
    step(one, math.nan, finite=False)
    one.step, one.images_seen = 2, 16
    for group in one.optimizer.param_groups:
        group["lr"] = 0.05  # as a schedule leaves it
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert store.digest(other.state_dict()) == store.digest(one.state_dict())
    assert (int(other.skipped.total), int(other.skipped.in_a_row), other.lr) == (1, 1, 0.1)
    for both in (one, other):
        step(both, -0.7, finite=True)
    assert contents(other) == contents(one)
