"""The averaged weights."""

import torch
from torch import nn

from scm.ema import Ema


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
