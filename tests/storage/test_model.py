"""A trained network with its facts: loaded, refused, sampled."""

from types import SimpleNamespace

import pytest
import torch
from closed_forms import GaussianData

from scm.config.parts import Kind
from scm.core.errors import UserError
from scm.method.samplers import ConsistencySteps
from scm.storage.model import Model

SD = 0.5


def model(num_classes=0, net=None):
    facts = SimpleNamespace(
        data=SimpleNamespace(image_shape=[1, 2, 2], sigma_data=SD),
        model=SimpleNamespace(num_classes=num_classes),
        objective=SimpleNamespace(learns=Kind.consistency),
    )
    exact = GaussianData(s=0.8, sigma_data=SD).consistency_net
    return Model(net or exact, facts, torch.device("cpu"))


TWO = ConsistencySteps(times=[1.1], sigma_max=80.0, sigma_data=SD)


def test_drawn_images_do_not_depend_on_batch_size_or_n():
    reference = model().sample(150, sampler=TWO, seed=5, batch_size=150)
    for n, batch_size in ((150, 7), (150, 64), (70, 33)):
        mine = model().sample(n, sampler=TWO, seed=5, batch_size=batch_size)
        torch.testing.assert_close(mine, reference[:n])
    assert len(reference.unique(dim=0)) == 150
    assert not torch.allclose(model().sample(150, sampler=TWO, seed=6), reference)


def test_the_start_has_the_noises_deviation():
    """A network that says F = 0 makes cos(t) x_T, so what it was given can be seen."""

    def silent(x, t, label=None):
        return torch.zeros_like(x), torch.zeros_like(t)

    one = ConsistencySteps(times=[], sigma_max=80.0, sigma_data=SD)
    x = model(net=silent).sample(4096, sampler=one, seed=0) / torch.cos(torch.tensor(one.times[0]))
    assert float(x.std()) == pytest.approx(SD, rel=0.02)


def test_all_classes_in_turn_or_the_one_asked_for():
    seen = []

    def labelled(x, t, label):
        seen.append(label)
        return torch.zeros_like(x), torch.zeros_like(t)

    one = ConsistencySteps(times=[], sigma_max=80.0, sigma_data=SD)
    model(3, labelled).sample(7, sampler=one, seed=0, batch_size=4)
    assert torch.cat(seen).tolist() == [0, 1, 2, 0, 1, 2, 0]
    seen.clear()
    model(3, labelled).sample(2, sampler=one, seed=0, label=2)
    assert torch.cat(seen).tolist() == [2, 2]
    with pytest.raises(UserError, match=r"--label 3: must be 0 \.\.\. 2"):
        model(3).labels(2, 3)
    with pytest.raises(UserError, match="--label 1: the model is unconditional"):
        model().labels(2, 1)
