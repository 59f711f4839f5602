"""One step's gradient: the same however the batch is parted, and in compiled passes."""

import logging
import shutil
from functools import partial

import methods
import pytest
import torch
from closed_forms import GaussianData, WeightedNet, points, smooth_net
from methods import SD
from runs import TINY, built, trained
from torch import nn

from scm.config.schema import Compile
from scm.core.distributed import World
from scm.method.network import Draw
from scm.method.objective import Loss
from scm.storage import store
from scm.training import loop

BATCH = 7
MATCHING = methods.matching(score=smooth_net, data=GaussianData(s=0.8, sigma_data=SD).diffusion_net)
OBJECTIVES = {
    "diffusion": methods.diffusion(),
    "without the adaptive weight": methods.diffusion(adaptive=False),
    "dual": methods.consistency(form="dual"),
    "split": methods.consistency(form="split"),
    "matching": methods.consistency().beside(MATCHING),
    "of the score network": MATCHING.of_samples(WeightedNet()),
}


def draw():
    x0, z, t = points(BATCH)
    noise = torch.stack([z.flip(0), z.flip(1)], 1)
    own = Draw(x0=x0, z=z.flip(2), t=t.flip(0), label=None, noise=noise)
    return Draw(x0=x0, z=z, t=t, label=None, noise=noise, own=own)


def gradients(objective, draw, parts, world):
    """The mean scalars, and every parameter's gradient where it has one."""
    net = WeightedNet()
    batch_loss = world.parallel(loop.BatchLoss(net, objective), uses_all=objective.adaptive_weight)
    scalars = loop.add_gradients(batch_loss, draw, parts, seed=0, step=4, world=world)
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**scalars, **grads}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_give_the_whole_batchs_gradient(name):
    """7 samples as 3 + 3 + 1: a part counts by its size."""
    parts = loop.parts_of(range(BATCH), 3)
    mine = gradients(OBJECTIVES[name], draw(), parts, World())

    net = WeightedNet()
    loss = OBJECTIVES[name].loss(net, draw(), 4)
    loss.loss.mean().backward()
    assert mine["train/loss"].item() == pytest.approx(loss.loss.mean().item(), rel=1e-13)
    assert mine["train/error"].item() == pytest.approx(loss.error.mean().item(), rel=1e-13)
    for parameter, value in net.named_parameters():
        torch.testing.assert_close(mine.get(parameter), value.grad, rtol=1e-12, atol=1e-14)


def test_parts_cover_the_rows_once():
    assert loop.parts_of(range(7), None) == [slice(0, 7)]
    assert loop.parts_of(range(4, 9), 2) == [slice(4, 6), slice(6, 8), slice(8, 9)]
    assert loop.parts_of(range(4), 9) == [slice(0, 4)]


def test_each_micro_batch_has_dropout_masks_of_its_own():
    masks = []

    class Masks(nn.Module):
        def forward(self, draw, step):
            masks.append(torch.rand(4))
            zeros = torch.zeros(len(draw.t), requires_grad=True)
            return Loss(loss=zeros, error=zeros.detach(), w=zeros.detach(), terms={})

    for _ in range(2):
        parts = loop.parts_of(range(BATCH), 4)
        loop.add_gradients(Masks(), draw(), parts, seed=0, step=4, world=World())
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.slow
def test_a_run_in_micro_batches_learns_what_the_whole_batch_teaches(tmp_path):
    """Batch 8 as 3 + 3 + 2, in float32: the same weights to 1e-4 after 6 steps."""
    run = (*TINY["unet_small"], "trainer.budget.steps=6", "trainer.evaluate_every=100")
    ends = []
    for name, more in (("whole", []), ("parts", ["trainer.micro_batch_size=3"])):
        trained(tmp_path / name, *run, *more)
        ends.append(store.newest(tmp_path / name / "checkpoints"))
    torch.testing.assert_close(ends[0]["net"], ends[1]["net"], rtol=1e-4, atol=1e-5)
    assert ends[0]["images_seen"] == ends[1]["images_seen"] == 48


# ---------------------------------------------------------------- compiled passes


def passes(parts, objective):
    """F, w and their tangents of this objective's passes, the loss, and the gradients of all."""
    net = parts.learner.net.train()
    net.zero_grad(set_to_none=True)
    whole = parts.task.draw(0)
    torch.manual_seed(0)
    inputs = (whole.x0 / SD, whole.t)
    found = {"value": objective.call(net, *inputs, None)}
    if hasattr(objective, "derivative"):
        directions = (whole.z / SD, torch.ones_like(whole.t))
        found["pair"] = objective.derivative.jvp(lambda x, t: net(x, t, None), inputs, directions)
    loss = objective.loss(net, whole, 5)
    loss.loss.mean().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    return {**found, "loss": loss.loss, "terms": loss.terms, "grads": grads}


def parts_for(path, *overrides):
    """Built, with no parameter at 0, where a tangent could hide."""
    parts = built(path, "objective.adaptive_weight=true", *overrides)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parts.learner.net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=gen)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "sct"])
@pytest.mark.parametrize("model", ["unet_attention"])  # the UNet and more
def test_compiled_passes_equal_eager_ones(model, objective, tmp_path):
    """Value, tangent, loss and gradient, as one graph each, and the network stays as it was."""
    parts = parts_for(tmp_path / "run", f"objective={objective}", *TINY[model])
    compile = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    compiled = parts.task.objective.compiled(compile)
    torch.testing.assert_close(
        passes(parts, compiled), passes(parts, parts.task.objective), rtol=1e-5, atol=1e-6
    )
    assert not any("_orig_mod" in name for name in parts.learner.net.state_dict())
    assert parts.learner.net._compiled_call_impl is None


TOY = ("data=bimodal", *TINY["mlp"])  # quick to compile
COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.mark.slow
@COMPILER
@pytest.mark.filterwarnings("ignore")  # inductor's own, of torch's deprecations
def test_a_compiled_run_trains_and_leaves_the_same_names(tmp_path):
    run = (*TOY, "trainer.budget.steps=4", "trainer.evaluate_every=100")
    eager = trained(tmp_path / "eager", *run)
    mine = trained(tmp_path / "run", *run, "trainer.compile=default")
    saved = [store.newest(tmp_path / name / "checkpoints") for name in ("eager", "run")]
    for part in ("net", "ema"):
        torch.testing.assert_close(saved[1][part], saved[0][part], rtol=1e-3, atol=1e-4)
    assert mine["metrics"]["eval/loss"] == pytest.approx(eager["metrics"]["eval/loss"], rel=1e-3)


def test_what_cannot_be_compiled_trains_in_eager_mode_and_says_so_once(tmp_path, caplog):
    """`split` forks the random state, which no graph holds."""
    run = (*TOY, "objective.derivative.form=split", "trainer.budget.steps=2")
    trained(tmp_path / "eager", *run)
    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "run", *run, "trainer.compile=default")
    said = [r.getMessage() for r in caplog.records if "trainer.compile" in r.getMessage()]
    assert len(said) == 1 and "training in eager mode" in said[0] and "\n" not in said[0]
    ends = [store.newest(tmp_path / name / "checkpoints") for name in ("eager", "run")]
    assert store.digest(ends[0]["net"]) == store.digest(ends[1]["net"])


def test_without_a_choice_nothing_is_compiled_or_tried():
    mine = OBJECTIVES["dual"]
    assert loop.compiled(mine, WeightedNet(), iter([None]), None) is mine
    assert {choice.value for choice in Compile} == {"default", "reduce-overhead"}
