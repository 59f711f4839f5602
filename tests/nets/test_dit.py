"""The transformer: its patches, positions and precision; attention as the networks call it."""

import math

import pytest
import torch
from runs import composed_once
from torch import Tensor, nn

from scm.nets import layers
from scm.nets.dit import DiT, positions
from scm.nets.embedding import Positional
from scm.nets.layers import SelfAttention


def dit(image_shape=(1, 28, 28), **deltas) -> DiT:
    """A small one whose output is not zero."""
    torch.manual_seed(0)
    given = {"num_classes": 0, "dropout": 0.0, "patch": 4, "width": 16, "blocks": 1}
    given |= {"attention_heads": 2, "expansion": 2, "embedding_width": 8, "norm": "double"}
    given |= {"second_time": False}
    embedding = Positional(dim=8, max_positions=1e4, c_noise="t", sigma_data=0.5)
    net = DiT(image_shape=image_shape, time_embedding=embedding, **(given | deltas))
    nn.init.normal_(net.out.weight)
    return net


def dependence(net: DiT, shape: tuple[int, int, int], row: int, column: int) -> Tensor:
    """Where x moves F's value at (row, column) of its first channel: (C, H, W) of booleans."""
    x = torch.randn(1, *shape, requires_grad=True)
    F, _ = net(x, torch.tensor([0.7]))
    (gradient,) = torch.autograd.grad(F[0, 0, row, column], x)
    return gradient[0] != 0


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 4), ((3, 8, 12), 4), ((2, 6, 4), 2)])
def test_a_token_is_one_patch_and_goes_back_to_its_place(shape, patch):
    """While the branches are zero, no patch sees another."""
    row, column = shape[1] - 1, 1
    seen = dependence(dit(shape, patch=patch), shape, row, column)
    expected = torch.zeros(shape, dtype=torch.bool)
    top, left = row // patch * patch, column // patch * patch
    expected[:, top : top + patch, left : left + patch] = True
    assert torch.equal(seen, expected)


def test_attention_lets_every_patch_see_every_other():
    net = dit()
    nn.init.normal_(net.blocks[0].attention.out.weight)
    assert dependence(net, (1, 28, 28), 0, 0).all()


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = positions(3, 5, 8)
    assert found.shape == (15, 8)
    for row in range(3):
        for column in range(5):
            waves = [
                wave(place * frequency)
                for place in (row, column)
                for wave in (math.sin, math.cos)
                for frequency in (1, 1 / 100)
            ]
            torch.testing.assert_close(found[5 * row + column], torch.tensor(waves))


def test_a_patch_knows_its_place():
    """Equal patches in two places give different values, and none of it is stored or learned."""
    net = dit()
    F, _ = net(torch.ones(1, 1, 28, 28), torch.tensor([0.7]))
    assert not torch.allclose(F[..., :4, :4], F[..., 4:8, :4])
    assert not torch.allclose(F[..., :4, :4], F[..., :4, 4:8])
    assert "positions" not in net.state_dict()


def test_it_is_told_a_second_time_and_a_class_which_start_without_effect():
    net = dit(second_time=True, num_classes=3)
    x, t = torch.randn(1, 1, 28, 28), torch.tensor([0.7])
    label, other = torch.tensor([0]), torch.tensor([2])
    s = torch.tensor([0.5])
    before = net(x, t, label, 0 * s)
    torch.testing.assert_close(net(x, t, other, s), before)
    nn.init.normal_(net.conditioning.second.weight)
    nn.init.normal_(net.conditioning.label.weight)
    assert not torch.allclose(net(x, t, label, s)[0], net(x, t, label, 0 * s)[0])
    assert not torch.allclose(net(x, t, other, s)[0], net(x, t, label, s)[0])


def test_queries_and_keys_have_unit_rms():
    """Their size does not matter; with one direction for all, the weights are those of sqrt(d)."""
    torch.manual_seed(0)
    net = SelfAttention(8, 2, qk_norm=True).double()
    nn.init.normal_(net.out.weight)
    x = torch.randn(2, 5, 8).double()
    before = net(x)
    with torch.no_grad():
        net.qkv.weight[:16] *= 1e3
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-4)
    plain = SelfAttention(8, 2).double()
    plain.load_state_dict(net.state_dict())
    assert not torch.allclose(plain(x), before, rtol=0.1)


@pytest.mark.parametrize("length", [5, layers.SHORT, layers.SHORT + 1])
def test_attention_in_16_bits_is_the_same_function_at_every_length(length):
    """Written out or fused."""
    q, k, v = torch.randn(3, 2, 2, length, 8, generator=torch.Generator().manual_seed(0))
    exact = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1) @ v
    torch.testing.assert_close(layers.attention(q, k, v), exact)
    found = layers.attention(*(x.bfloat16() for x in (q, k, v))).float()
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_which_attention_is_fused(monkeypatch):
    """All but that of few keys in 16 bits on a CPU, whose fused backward is slow."""
    seen = []
    fused = layers.F.scaled_dot_product_attention
    monkeypatch.setattr(
        layers.F, "scaled_dot_product_attention", lambda *xs: seen.append(1) or fused(*xs)
    )

    def is_fused(length: int, dtype: torch.dtype) -> bool:
        seen.clear()
        layers.attention(*torch.randn(3, 1, 1, length, 4).to(dtype))
        return bool(seen)

    assert is_fused(5, torch.float32) and is_fused(5, torch.float64)
    assert is_fused(layers.SHORT + 1, torch.bfloat16)
    assert not is_fused(layers.SHORT, torch.bfloat16)


def test_first_and_last_layer_see_float32_and_the_blocks_bfloat16():
    net, seen = dit(), {}
    net.compute_dtype = torch.bfloat16
    for name, part in {"stem": net.stem, "out": net.out, "block": net.blocks[0]}.items():
        part.register_forward_hook(
            lambda module, given, out, name=name: seen.update({name: given[0].dtype})
        )
    F, w = net(torch.randn(2, 1, 28, 28), torch.rand(2))
    wanted = {"stem": torch.float32, "out": torch.float32, "block": torch.bfloat16}
    assert seen == wanted and F.dtype == w.dtype == torch.float32


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ({"patch": 5}, r"images \(1, 28, 28\), model.patch=5: .* use another patch"),
        ({"image_shape": (1, 28, 30)}, r"images \(1, 28, 30\), model.patch=4"),
        ({"image_shape": (1, 1, 1)}, "model=mlp"),
        ({"width": 18}, "model.width=18: must be divisible by 4"),
        ({"attention_heads": 3}, "model.attention_heads=3: must divide the width 16"),
    ],
)
def test_a_shape_that_does_not_fit_is_named_with_its_remedy(deltas, said):
    with pytest.raises(ValueError, match=said):
        dit(**deltas)


def test_the_option_is_what_its_comment_says():
    config = composed_once(("model=dit",))
    assert config.model.patch * 7 == 28 and config.model.width == 32 * config.model.attention_heads
