"""The worked examples of docs/extending.md, as they stand there, outside the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closed_forms import points
from methods import SD, common

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(?:python|yaml)\n# (mine/[\w./]+)\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The page's files in a folder."""
    folder = tmp_path_factory.mktemp("place") / "mine"
    for name, text in BLOCK.findall((REPOSITORY / "docs" / "extending.md").read_text()):
        file = folder.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as opened:
            opened.write(text)
    return folder


def called(*command, mine, granted):
    path = os.pathsep.join([str(mine), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    if granted:
        environment["SCM_MODULES"] = "my_methods"
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_all_three_train_together_and_are_sampled_by_the_users_word_alone(mine):
    run = mine.parent / "run"
    train = (
        *("run.py", "-cd", str(mine), "objective=denoiser", "data=squares", "trainer=smoke"),
        *("model=unet_small", "model.widths=[8,16]", "model.blocks=[1,1]", "trainer.threads=1"),
        *("trainer.budget.steps=2", f"hydra.run.dir={run}"),
    )
    refused = called(*train, mine=mine, granted=False)
    assert refused.returncode == 2 and "SCM_MODULES" in refused.stderr
    assert not run.exists()
    done = called(*train, mine=mine, granted=True)
    assert done.returncode == 0, done.stderr
    assert (run / "samples" / "even_00000002.png").exists()
    sample = ("-m", "scm", "sample", str(run), "-n", "4", "--out", str(mine.parent / "x.npz"))
    refused = called(*sample, mine=mine, granted=False)
    assert refused.returncode == 2 and "my_methods.Squares: refused" not in refused.stdout
    assert "SCM_MODULES" in refused.stderr
    assert called(*sample, mine=mine, granted=True).returncode == 0


@pytest.mark.slow
def test_a_method_of_the_family_is_a_yaml(mine):
    run = mine.parent / "mean_flow"
    train = (
        *("run.py", "-cd", str(mine), "objective=mean_flow", "trainer=smoke", "trainer.threads=1"),
        *("model=unet_small", "model.widths=[8,16]", "model.blocks=[1,1]", "objective.init=null"),
        *("trainer.budget.steps=2", "objective.velocity.points=64", f"hydra.run.dir={run}"),
    )
    done = called(*train, mine=mine, granted=False)
    assert done.returncode == 0, done.stderr
    assert (run / "samples" / "flow_two_step_00000002.png").exists()


def test_the_objective_is_0_for_a_network_that_knows_the_images(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))
    from my_methods import Denoiser

    from scm.method.network import Draw

    x0, z, t = points()
    t4 = t.view(-1, 1, 1, 1)
    x_t = t4.cos() * x0 + t4.sin() * z

    def net(x, t, label=None):
        torch.testing.assert_close(x, x_t / SD)
        return (t4.cos() * x_t - x0) / (t4.sin() * SD), torch.zeros_like(t)

    loss = Denoiser(**common()).loss(net, Draw(x0=x0, z=z, t=t, label=None), 0)
    assert loss.error.max() < 1e-24
