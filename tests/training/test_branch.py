"""A branch: another run's checkpoint under other settings and draws."""

import pytest
import torch
from runs import TINY, built, trained, trained_of

from scm.core.errors import UserError
from scm.storage import store

SMALL = ("data=bimodal", *TINY["mlp"])


@pytest.fixture
def trunk(tmp_path):
    """A run of two steps, and its checkpoint."""
    trained(tmp_path / "trunk", *SMALL, "trainer.budget.steps=2", "optimizer.lr=1e-3")
    return tmp_path / "trunk" / "checkpoints" / "step-00000002.pt"


def test_a_branch_stands_where_the_checkpoint_does_with_settings_of_its_own(trunk, tmp_path):
    own = ("optimizer.lr=5e-4", "optimizer.betas=[0.5,0.9]", "seed=1", "trainer.budget.steps=3")
    parts = built(tmp_path / "branch", *SMALL, f"trainer.branch={trunk}", *own)
    saved, learner = store.read(trunk), parts.learner
    assert (learner.step, learner.images_seen) == (2, saved["images_seen"])
    for name, weight in learner.net.state_dict().items():
        assert torch.equal(weight, saved["net"][name])
    for name, weight in learner.ema.net.state_dict().items():
        assert torch.equal(weight, saved["ema"][name])
    (group,), state = learner.optimizer.param_groups, learner.optimizer.state_dict()["state"]
    assert (group["lr"], group["betas"]) == (5e-4, (0.5, 0.9))
    assert all(
        torch.equal(state[k]["exp_avg_sq"], saved["optimizer"]["state"][k]["exp_avg_sq"])
        for k in state
    )
    assert learner.lr == 5e-4 and parts.task.seed == 1
    assert parts.sources["branch"] == {
        "path": str(trunk),
        "weights_sha256": store.weights_digest(saved["net"]),
    }
    found = trained_of(parts)
    assert (found["status"], found["steps"]) == ("done", 3)


def test_a_branch_that_was_stopped_goes_on_from_its_own_checkpoint(trunk, tmp_path):
    own = (f"trainer.branch={trunk}", "trainer.budget.steps=3", "trainer.save_every=1")
    parts = built(tmp_path / "branch", *SMALL, *own)
    ended = trained_of(parts)
    trunk.unlink()
    again = trained(tmp_path / "branch", *SMALL, *own)
    assert again["steps"] == 3 and again["metrics"]["eval/loss"] == ended["metrics"]["eval/loss"]
    with pytest.raises(UserError, match=r"trainer.branch=.*step-00000002.pt: no such file"):
        built(tmp_path / "new", *SMALL, *own)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.width=32",), r"trainer.branch=.*another network, with model.width=16"),
        (("model.num_classes=2",), r"trainer.branch=.*model.num_classes=0, this run has 2"),
    ],
)
def test_a_checkpoint_of_another_network_or_with_classes_is_refused(
    overrides, said, trunk, tmp_path
):
    with pytest.raises(UserError, match=said):
        built(tmp_path / "branch", *SMALL, *overrides, f"trainer.branch={trunk}")
    assert not (tmp_path / "branch").exists()


def test_weights_are_no_checkpoint(trunk, tmp_path):
    with pytest.raises(UserError, match="a readable checkpoint"):
        built(tmp_path / "branch", *SMALL, f"trainer.branch={trunk.parent / store.EMA_FILE}")
