"""CMT: the ends of trajectories as targets, in float64."""

import pytest
import torch
from closed_forms import GaussianData, WeightedNet, points
from methods import SD, common

from scm.method import objective, trigflow
from scm.method.network import Draw

DATA = GaussianData(s=0.8, sigma_data=SD)
STEPS = 4


def cmt(steps=STEPS, teacher=None, **more):
    return objective.Endpoint(steps=steps, **common(teacher=teacher or DATA.diffusion_net, **more))


def draw(n=10, label=None):
    x0, z, t = points(n)
    return Draw(x0=x0, z=z, t=t, label=label)


def test_its_points_lie_on_the_trajectories_of_its_noises_and_its_targets_at_their_ends():
    """The exact map from T leads to both; Heun's 64 steps come within half a percent."""
    kind, d = cmt(64), draw(150)
    d = Draw(d.x0, d.z, kind.times(d.t), None)
    _, x_t, end = kind.path(None, d)
    n = -(-150 // 64)
    start = d.z[torch.arange(150) % n]
    top = torch.full_like(d.t, kind.solver.times[0])
    for there, time in ((x_t, d.t), (end, torch.zeros_like(d.t))):
        ratio = (DATA.variance(time) / DATA.variance(top)).sqrt()
        torch.testing.assert_close(
            there, trigflow.broadcast(ratio, start) * start, rtol=5e-3, atol=0
        )


def test_times_are_the_grids_nearest():
    kind = cmt()
    assert len(kind.grid) == STEPS and kind.grid[0] > kind.grid[-1] > 0
    torch.testing.assert_close(kind.times(kind.grid + 1e-6), kind.grid, rtol=0, atol=0)
    middle = kind.grid[:2].double().mean()
    near = torch.stack([middle + 1e-4, middle - 1e-4])
    torch.testing.assert_close(kind.times(near), kind.grid[:2], rtol=0, atol=0)


def test_the_loss_is_the_distance_of_f_from_the_end():
    net, d, kind = WeightedNet(), draw(), cmt(adaptive=False)
    t = kind.times(d.t)
    _, x_t, end = kind.path(net, Draw(d.x0, d.z, t, None))
    f = trigflow.consistency(x_t, net(x_t / SD, t)[0], t, SD)
    naive = (f - end).square().mean((1, 2, 3))
    loss = kind.loss(net, d, 0)
    torch.testing.assert_close(loss.loss, naive)
    mine, theirs = (torch.autograd.grad(x.mean(), net.kernel)[0] for x in (loss.loss, naive))
    torch.testing.assert_close(mine, theirs)


def test_the_exact_consistency_function_errs_as_the_solver_does():
    """By its order, 2: the squared error falls 16 times where steps double."""
    errors = [float(cmt(n).loss(DATA.consistency_net, draw(), 0).error.mean()) for n in (40, 80)]
    assert errors[1] < 1e-5 and 10 < errors[0] / errors[1] < 24


def test_a_sample_has_its_trajectorys_label_and_the_teacher_is_told_it():
    told = []

    def teacher(x, t, label):
        told.append(label.tolist())
        return DATA.diffusion_net(x, t)

    def net(x, t, label):
        told.append(label.tolist())
        return DATA.consistency_net(x, t)

    cmt(teacher=teacher).loss(net, draw(10, torch.arange(10)), 0)
    assert told == [[0, 1, 2]] * (2 * STEPS - 1) + [[0, 1, 2] * 3 + [0]]


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_any_batch_has_trajectories_enough(n):
    assert cmt().loss(DATA.consistency_net, draw(n), 0).loss.shape == (n,)


def test_the_end_is_behind_the_schemes_last_step():
    """From the lowest noise level it is one of first order: there the teacher's f is the end."""
    low = Draw(*points(5)[:2], t=torch.full((5,), 1e-4).double(), label=None)
    assert cmt().loss(DATA.diffusion_net, low, 0).error.max() < 1e-24
