"""The networks: tangents, shapes, starts, precision, and the layers' defining properties."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from runs import TINY, composed_once
from torch import Tensor, nn

from scm.method import dual
from scm.method.tangent import differentiable_attention
from scm.nets import layers
from scm.nets.embedding import Fourier, Positional
from scm.nets.layers import channel_norm
from scm.nets.unet import Attention
from scm.storage import model as models

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
SIGMA_DATA = 0.5
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"widths": [8, 16], "blocks": [1, 2], "embedding_width": 16},
    "unet_small": {"widths": [4, 8, 8], "blocks": [1, 1, 1], "embedding_width": 8, "patch": 1},
    "unet_attention": {"widths": [8, 16], "blocks": [1, 1], "attention_heads": 2},
    "unet_mobile": {"width": 8, "multipliers": [2, 4], "groups": 2},
    "dit": {"width": 16, "blocks": 2, "embedding_width": 16, "attention_heads": 2},
    "mlp": {"width": 16, "blocks": 2, "embedding_width": 16},
}
PARAMETERS = {  # millions
    "unet": (1.5, 2.5),
    "unet_small": (0.3, 0.5),
    "unet_attention": (1.5, 2.6),
    "unet_mobile": (0.82, 0.84),
    "dit": (1.5, 2.5),
    "mlp": (0.1, 0.5),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors on several threads only wait for each other, badly so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(path: Path) -> dict[str, Any]:
    """A yaml file's own values, without its defaults and what other groups fill in."""
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    for key in ("defaults", "image_shape", "dropout"):
        values.pop(key, None)
    return {str(key): value for key, value in values.items()}


def embedding(name: str = "positional", **deltas: Any) -> nn.Module:
    values = read(CONF / "time_embedding" / f"{name}.yaml") | {"sigma_data": SIGMA_DATA} | deltas
    return get_class(values.pop("_target_"))(**values)


def network(
    name: str,
    time_embedding: nn.Module | None = None,
    image_shape: tuple[int, int, int] = (1, 28, 28),
    dropout: float = 0.0,
    **deltas: Any,
) -> Any:
    """The network of conf/model/NAME.yaml with deltas."""
    values = read(CONF / f"{name}.yaml")
    own = values.pop("time_embedding", {})
    return get_class(values.pop("_target_"))(
        time_embedding=time_embedding or embedding(**own),
        image_shape=image_shape,
        dropout=dropout,
        **(values | deltas),
    )


def small(name: str, *args: Any, **deltas: Any) -> Any:
    """A small one in float64 whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    net = network(name, *args, **(SMALL[name] | deltas)).double()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def inputs(batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[tuple, tuple]:
    """Primals (x, t) and tangents of both."""
    generator = torch.Generator().manual_seed(2)
    x, dx = torch.randn(2, batch, 1, 28, 28, dtype=dtype, generator=generator)
    t = torch.linspace(0.1, 1.5, batch, dtype=dtype)
    return (x, t), (dx, torch.randn(batch, dtype=dtype, generator=generator))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def check_tangent(net: nn.Module, label: Tensor | None = None) -> None:
    """The dual pass against torch.func.jvp, central differences and the plain forward."""

    def fn(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return net(x, t, label)

    primals, tangents = inputs()
    out, dout = dual.jvp(fn, primals, tangents)
    plain = fn(*primals)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    with differentiable_attention():
        _, reference = torch.func.jvp(fn, primals, tangents)
    torch.testing.assert_close(dout, reference, rtol=1e-10, atol=1e-11)
    assert not any(d.requires_grad for d in dout) and all(d.any() for d in dout)

    h = 1e-6
    above, below = (
        fn(*(x + s * h * dx for x, dx in zip(primals, tangents, strict=True))) for s in (1, -1)
    )
    for d, a, b in zip(dout, above, below, strict=True):
        assert relative(d, (a - b) / (2 * h)) < 1e-5

    parameters = list(net.parameters())
    got = torch.autograd.grad(out[0].square().sum() + out[1].sum(), parameters)
    expected = torch.autograd.grad(plain[0].square().sum() + plain[1].sum(), parameters)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm", layers.NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_tangent_of_every_network_and_norm(name: str, norm: str) -> None:
    check_tangent(small(name, norm=norm))


@pytest.mark.parametrize("name", SMALL)
def test_tangent_of_a_conditional_network(name: str) -> None:
    check_tangent(small(name, num_classes=10), torch.tensor([3, 0, 9]))


@pytest.mark.parametrize("c_noise", ["t", "log"])
@pytest.mark.parametrize("deltas", [{}, {"name": "fourier"}, {"name": "fourier", "scale": 16.0}])
def test_tangent_of_every_embedding(deltas: dict[str, Any], c_noise: str) -> None:
    torch.manual_seed(0)
    check_tangent(small("unet", embedding(c_noise=c_noise, **deltas)))


@pytest.mark.parametrize("name", SMALL)
def test_starts_at_zero_with_the_stated_size(name: str) -> None:
    torch.manual_seed(0)
    net = network(name)
    low, high = PARAMETERS[name]
    assert low < sum(p.numel() for p in net.parameters()) / 1e6 < high
    primals, _ = inputs(dtype=torch.float32)
    out, w = net(*primals)
    assert out.shape == (3, 1, 28, 28) and w.shape == (3,)
    assert out.dtype == w.dtype == torch.float32
    assert not out.any() and not w.any()


@pytest.mark.parametrize("name", SMALL)
def test_batched_is_looped(name: str) -> None:
    net = small(name, num_classes=10)
    (x, t), _ = inputs()
    label = torch.tensor([1, 2, 3])
    together = net(x, t, label)
    for i in range(3):
        alone = net(x[i : i + 1], t[i : i + 1], label[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_wrong_inputs_are_refused(name: str) -> None:
    (x, t), _ = inputs()
    plain, conditional = small(name), small(name, num_classes=10)
    with pytest.raises(ValueError, match=r"\(3, 1, 28, 27\).*\(B, 1, 28, 28\)"):
        plain(x[..., 1:], t)
    with pytest.raises(ValueError, match=r"t \(3, 1\)"):
        plain(x, t[:, None])
    with pytest.raises(ValueError, match="unconditional"):
        plain(x, t, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="label missing"):
        conditional(x, t)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mlp"])
def test_image_networks_refuse_the_toy(name: str) -> None:
    with pytest.raises(ValueError, match="model=mlp"):
        network(name, image_shape=(1, 1, 1))


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="norm='batch': use one of double, adagn, seed"):
        network("unet", norm="batch")
    with pytest.raises(ValueError, match="c_noise='sigma': use one of t, log"):
        embedding(c_noise="sigma")
    with pytest.raises(ValueError, match="dim=7"):
        embedding(dim=7)
    with pytest.raises(ValueError, match="attention_heads=3"):
        network("unet_attention", attention_heads=3)
    with pytest.raises(ValueError, match="one each"):
        network("unet", widths=[64])


def test_mlp_runs_on_the_toy() -> None:
    net = small("mlp", image_shape=(1, 1, 1))
    out, w = net(torch.randn(5, 1, 1, 1).double(), torch.rand(5).double())
    assert out.shape == (5, 1, 1, 1) and w.shape == (5,)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tangent_error_in_low_precision(name: str, dtype: torch.dtype) -> None:
    """sigma from 0.4 up, against float64: float32 within 1e-5, bfloat16 within a few per cent."""
    net = small(name).float()
    net.compute_dtype = dtype
    (x, _), (dx, _) = inputs(8)
    t = torch.atan(torch.logspace(-0.4, 1.9, 8).double() / SIGMA_DATA)
    primals, tangents = (x, t), (dx, t.sin() * t.cos())
    low, dlow = dual.jvp(net, tuple(a.float() for a in primals), tuple(a.float() for a in tangents))
    assert all(a.dtype == torch.float32 for a in (*low, *dlow))
    out, dout = dual.jvp(net.double().requires_grad_(False), primals, tangents)
    value_error, tangent_error = relative(low[0], out[0]), relative(dlow[0], dout[0])
    bound = 1e-5 if dtype == torch.float32 else 0.03
    assert value_error < bound and tangent_error < bound
    assert relative(dlow[1], dout[1]) < 1e-5  # w and all of time stay in float32


def test_dropout_mask_is_shared() -> None:
    """With the same seed the dual value is the plain one, and the tangent is its derivative."""
    net = small("unet", dropout=0.3).train()
    primals, tangents = inputs()

    def seeded(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        return net(x, t)

    out, dout = dual.jvp(seeded, primals, tangents)
    torch.testing.assert_close(out, seeded(*primals), rtol=0, atol=0)
    h = 1e-6
    above, below = (
        seeded(*(x + s * h * dx for x, dx in zip(primals, tangents, strict=True))) for s in (1, -1)
    )
    assert relative(dout[0], (above[0] - below[0]) / (2 * h)) < 1e-5
    assert not torch.equal(out[0], net.eval()(*primals)[0])


# ---------------------------------------------------------------- layers


def test_pixel_norm_has_unit_rms() -> None:
    a = torch.randn(4, 16, 3, 3).double() * 7
    rms = layers.pixel_norm(a).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=1e-5)
    assert not layers.pixel_norm(torch.zeros(1, 4)).any()


def test_channel_norm_is_zero_mean_unit_variance() -> None:
    y = layers.channel_norm(torch.randn(4, 16, 3, 3).double() * 7 + 3)
    torch.testing.assert_close(y.mean(1), torch.zeros(4, 3, 3).double(), rtol=0, atol=1e-12)
    variance = y.square().mean(1)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-4)


def test_double_norm_is_the_papers_formula() -> None:
    """y = norm(x) pnorm(s(t)) + pnorm(b(t)); scale and shift have unit RMS whatever t does."""
    torch.manual_seed(0)
    layer = layers.DoubleNorm(8, 5).double()
    x, e = torch.randn(3, 8, 2, 2).double(), 100 * torch.randn(3, 5).double()
    s, b = layer.affine(e).chunk(2, dim=1)
    scale, shift = layers.pixel_norm(s), layers.pixel_norm(b)
    expected = layers.channel_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(layer(x, e), expected)
    for coefficient in (scale, shift):
        rms = coefficient.square().mean(1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=1e-5)
    # No shift starts near zero, where pnorm has no derivative.
    start = layers.DoubleNorm(64, 256)
    b = start.affine(torch.randn(100, 256)).chunk(2, dim=1)[1]
    assert b.square().mean(1).sqrt().min() > 0.5


def test_adagn_and_the_seeds_layer() -> None:
    torch.manual_seed(0)
    x, e = torch.randn(3, 8, 2, 2), torch.randn(3, 5)
    adagn, seed = layers.AdaGN(8, 5), layers.SeedScale(8, 5)
    s, b = adagn.affine(e)[:, :, None, None].chunk(2, dim=1)
    torch.testing.assert_close(adagn(x, e), layers.channel_norm(x) * (1 + s) + b)
    scale = layers.pixel_norm(1 + seed.mlp(e))[:, :, None, None]
    torch.testing.assert_close(seed(x, e), x * scale)


def test_embeddings_are_their_formulas() -> None:
    t = torch.tensor([0.0, 0.3, 1.5]).double()
    positional = Positional(dim=6, max_positions=100.0, c_noise="t", sigma_data=SIGMA_DATA)
    f = 100.0 ** (-torch.arange(3) / 3)
    expected = torch.cat([torch.cos(t[:, None] * f), torch.sin(t[:, None] * f)], dim=1)
    torch.testing.assert_close(positional(t), expected, rtol=0, atol=1e-7)

    torch.manual_seed(1)
    fourier = Fourier(dim=4000, scale=16.0, c_noise="log", sigma_data=SIGMA_DATA)
    assert abs(fourier.frequencies.std().item() / (2 * torch.pi * 16) - 1) < 0.05
    assert "frequencies" in fourier.state_dict()
    c = 0.25 * torch.log(SIGMA_DATA * torch.tan(t[1:, None]))
    torch.testing.assert_close(fourier(t[1:])[:, :2000], torch.cos(c * fourier.frequencies))


@pytest.mark.parametrize("name", ["positional", "fourier"])
def test_embeddings_never_fall_below_float32(name: str) -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert embedding(name)(torch.ones(2, dtype=dtype)).dtype == expected


def test_master_weights_follow_their_input() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        assert layers.Linear(3, 4)(torch.ones(2, 3, dtype=dtype)).dtype == dtype
        assert layers.Conv2d(3, 4, 1)(torch.ones(2, 3, 5, 5, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("model", ["unet", "mlp", "unet_mobile", "dit"])
def test_a_network_without_an_embedding_perceptron_still_sees_the_time(model):
    """model.embedding_width=0: the blocks get the time embedding itself."""
    torch.manual_seed(0)
    config = composed_once((*TINY[model], "model.embedding_width=0"))
    net = models.network(config, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(1, *config.data.image_shape).repeat(2, 1, 1, 1)
    F, w = net.eval()(x, torch.tensor([0.3, 1.2]), None)
    assert (F[0] - F[1]).abs().max() > 1e-5 and (w[0] - w[1]).abs() > 1e-5


def test_attention_is_softmax_of_scaled_products():
    """Written out head by head: a wrong scale, or heads mixed up, would show."""
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(8))
    x = torch.randn(3, 8, 2, 5).double()
    tokens = channel_norm(x).flatten(2).transpose(1, 2)
    q, k, v = (
        part.unflatten(2, (2, 4)).transpose(1, 2)
        for part in (tokens @ attention.qkv.weight.T).chunk(3, dim=2)
    )
    mixed = ((q @ k.transpose(2, 3) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = x + mixed.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_the_skip_of_each_resolution_reaches_the_output():
    """With the way down cut, all that the output can see of x came past it."""
    torch.manual_seed(0)
    config = composed_once((*TINY["unet"],))
    net = models.network(config, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
        for down in net.down:
            down.weight.zero_()
    x = torch.randn(2, *config.data.image_shape)
    F, _ = net.eval()(x, torch.tensor([0.5, 0.5]), None)
    assert (F[0] - F[1]).abs().max() > 1e-4


def test_the_conditioning_is_the_sum_of_time_second_time_and_class():
    """silu(mlp(c(t)) + second(c(s)) + label), w a linear map of it."""
    torch.manual_seed(0)
    conditioning = layers.Conditioning(
        time_embedding=embedding(dim=8), num_classes=5, width=6, second_time=True
    ).double()
    for parameter in conditioning.parameters():
        nn.init.normal_(parameter)
    t, s = torch.tensor([0.3, 1.2]).double(), torch.tensor([0.1, 0.9]).double()
    label = torch.tensor([4, 1])
    e, w = conditioning(t, label, s)
    features = conditioning.time_embedding
    summed = conditioning.mlp(features(t)) + conditioning.second(features(s))
    expected = nn.functional.silu(summed + conditioning.label.weight[label])
    torch.testing.assert_close(e, expected)
    torch.testing.assert_close(w, conditioning.log_weight(expected).squeeze(1))
    at_0, _ = conditioning(t, label, torch.zeros_like(s))
    torch.testing.assert_close(conditioning(t, label, None)[0], at_0)
    assert not torch.isclose(e, at_0).any()


@pytest.mark.parametrize("name", ["unet", "unet_attention", "mlp", "dit"])
def test_every_block_is_steered_by_the_same_features(name):
    net, seen = small(name), []
    for module in net.modules():
        if isinstance(module, layers.DoubleNorm):
            module.register_forward_hook(lambda module, given, out: seen.append(given[1]))
    (x, t), _ = inputs()
    net(x, t)
    e, _ = net.conditioning(t, None, None)
    assert len(seen) == sum(isinstance(m, layers.DoubleNorm) for m in net.modules()) > 1
    assert all(torch.equal(one, e) for one in seen)


@pytest.mark.parametrize("name", ["unet", "unet_small", "unet_attention"])
def test_first_and_last_convolution_see_float32_and_the_blocks_bfloat16(name):
    net, seen = small(name).float(), {}
    net.compute_dtype = torch.bfloat16
    for part in ("stem", "out", "middle"):
        getattr(net, part).register_forward_hook(
            lambda module, given, out, part=part: seen.update({part: given[0].dtype})
        )
    x, t = (one.float() for one in inputs()[0])
    F, w = net(x, t)
    wanted = {"stem": torch.float32, "out": torch.float32, "middle": torch.bfloat16}
    assert seen == wanted and F.dtype == w.dtype == torch.float32
