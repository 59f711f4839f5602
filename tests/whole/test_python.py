"""From Python: load, sample, denoise, flow; train; a table of runs."""

import json
import math

import pytest
import torch
from runs import TINY, quick

import scm
from scm.config.metrics import feature_weights
from scm.data.dataset import to_uint8
from scm.evaluation import features
from scm.storage import model as models

SHORT = (*TINY["mlp"], "data=bimodal", "trainer.budget.steps=2", "trainer.log_every=1")


@pytest.fixture(scope="module")
def student():
    return scm.load("mnist_scd", device="cpu", precision="fp32")


def test_a_shipped_model_samples_by_steps(student):
    one, two = student.sample(4, steps=1), student.sample(4, steps=2, seed=0)
    assert one.shape == (4, 1, 28, 28) and one.dtype == torch.float32
    own = student.facts.sampler
    for name, made in (("one_step", one), ("two_step", two)):
        torch.testing.assert_close(
            made, student.sample(4, sampler=student.sampler(name, own[name]), seed=0)
        )
    torch.testing.assert_close(student.sample(4), one)  # the first of its own
    assert len({student.sampler_with(steps).calls for steps in (1, 2, 3, 4)}) == 4
    with pytest.raises(scm.UserError, match="steps=9: a network that learns consistency takes 1,"):
        student.sample(4, steps=9)


def test_a_diffusion_models_steps_are_heuns():
    teacher = scm.load("mnist_teacher", device="cpu", precision="fp32")
    assert [teacher.sampler_with(steps).calls for steps in (1, 3, 18)] == [1, 5, 35]
    with pytest.raises(scm.UserError, match="steps=0: a network that learns velocity takes 1 or"):
        teacher.sampler_with(0)
    with pytest.raises(scm.UserError, match="learns velocity, so it has no second time"):
        teacher.flow(torch.zeros(1, 1, 28, 28), 1.0, 0.5)


@pytest.mark.parametrize("name", ["mnist_scd_classes", "mnist_dmd_classes"])
def test_a_shipped_model_draws_the_digit_that_it_is_told(name):
    model = scm.load(name, device="cpu", precision="fp32")
    read = features.load(feature_weights("mnist"), model.device)
    for told in ({}, {"label": 7}):
        seen = read(to_uint8(model.sample(40, steps=2, **told)))
        assert seen.probabilities.argmax(1).eq(model.labels(40, **told)).sum() > 35


def test_denoise_is_f_at_one_time_or_one_each(student):
    gen = torch.Generator().manual_seed(0)
    x_t = 0.5 * torch.randn(3, 1, 28, 28, generator=gen)
    t = torch.tensor([0.2, 0.9, 1.5])
    each = student.denoise(x_t, t)
    with torch.no_grad():
        F, _ = student.net(x_t / 0.5, t)
    at = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(each, torch.cos(at) * x_t - torch.sin(at) * 0.5 * F)
    torch.testing.assert_close(student.denoise(x_t, 0.9)[1], each[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student.denoise(x_t, 0.0), x_t)
    top = math.atan(80 / 0.5)
    noise = 0.5 * torch.randn(3, 1, 28, 28, generator=gen)
    assert student.denoise(noise, top).abs().max() < 1


def test_flow_leads_on_from_time_to_time(tmp_path):
    run = scm.train(quick(*SHORT, "objective=meanflow"), folder=tmp_path / "map")
    net = scm.load(run.path, device="cpu", precision="fp32")
    x = 0.5 * torch.randn(5, 1, 1, 1)
    torch.testing.assert_close(net.flow(x, 1.2, 1.2), x)
    torch.testing.assert_close(net.flow(x, 1.2, 0.0), net.denoise(x, 1.2))
    s = torch.linspace(0, 1, 5)
    F, _ = net.net(x / 0.5, torch.full((5,), 1.2), None, s)
    d = (1.2 - s).view(-1, 1, 1, 1)
    expected = torch.cos(d) * x - torch.sin(d) * 0.5 * F
    torch.testing.assert_close(net.flow(x, 1.2, s), expected.detach())
    assert [net.sampler_with(k).calls for k in (1, 2, 4)] == [1, 2, 4]


def test_training_is_the_command_lines_and_goes_on(tmp_path):
    folder = tmp_path / "runs" / "a"
    run = scm.train(quick(*SHORT, "objective=sct"), folder=folder)
    assert (
        run.status == "done" and run.record["steps"] == 2 and run.config["objective.name"] == "sct"
    )
    assert {p.name for p in (folder / ".hydra").iterdir()} == {
        *("command.txt", "config.yaml", "overrides.yaml"),
    }
    command = (folder / ".hydra" / "command.txt").read_text()
    assert command.startswith(f"python run.py hydra.run.dir={folder} ")
    written = (folder / "metrics.json").read_bytes()
    assert scm.train(quick(*SHORT, "objective=sct"), folder=folder).status == "done"
    assert (folder / "metrics.json").read_bytes() == written
    with pytest.raises(scm.UserError, match=r"seed=3 \(there: 0\)"):
        scm.train(quick(*SHORT, "objective=sct", "seed=3"), folder=folder)
    rows = scm.runs(tmp_path / "runs")
    assert len(rows) == 1 and rows[0]["run"] == str(folder) and rows[0]["status"] == "done"
    recorded = json.loads(written)
    assert rows[0]["eval/loss"] == recorded["metrics"]["eval/loss"] and rows[0]["steps"] == 2
    assert rows[0]["optimizer.lr"] == 2e-4
    assert models.load(folder, torch.device("cpu"), torch.float32).sample(2).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=magic"], "magic"),
        (["trainer.batch_size=many"], "trainer.batch_size=many"),
        (["trainer.foo=1"], "trainer.foo"),
        (["sampler=heun"], "sampler=heun: needs a network that learns velocity"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(overrides, said, tmp_path):
    with pytest.raises(scm.UserError, match=said) as raised:
        scm.train(overrides, folder=tmp_path / "run")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_what_is_missing_is_named():
    with pytest.raises(scm.UserError, match="nothing_here: no such file or folder"):
        scm.load("nothing_here")
    with pytest.raises(scm.UserError, match="no run"):
        scm.runs("docs")
