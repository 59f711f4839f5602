"""Figures are pictures of the right shape with something on them, on an opaque background."""

import numpy as np
import pytest
import torch

from scm.evaluation import pictures

pytestmark = pytest.mark.pictures


def is_drawn(picture, panels):
    assert picture.dtype == np.uint8 and picture.shape == (400, 500 * panels, 3)
    assert (picture[0, 0] == 255).all() and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def two_maps(spike=0.0):
    x, y = torch.linspace(0, 1.5, 20), torch.linspace(-1, 1, 10)
    field = torch.sin(3 * x) * y[:, None]
    field[3, 3] += spike
    return pictures.compared_maps(
        x,
        y,
        {"learned": field, "exact": field + 0.01 * y[:, None]},
        xlabel=pictures.TIME,
        ylabel="x",
        unit="unit",
        title="title",
    )


def test_compared_maps():
    is_drawn(two_maps(), 3)


def test_one_extreme_value_does_not_hide_a_map():
    """Outside the robust range it changes its own cell, and the others hardly."""
    change = np.abs(two_maps().astype(int) - two_maps(spike=1e6)).max(2)
    assert (change > 40).mean() < 0.02


def test_maps_of_equal_values_can_be_drawn():
    same = torch.zeros(4, 4)
    axis = torch.arange(4.0)
    picture = pictures.compared_maps(
        axis, axis, {"a": same, "b": same}, xlabel="", ylabel="", unit="", title=""
    )
    is_drawn(picture, 3)


def test_over_time_draws_single_and_many_curves():
    t = torch.linspace(1.5, 0, 30)
    many = pictures.Lines("many", t[:, None] * torch.arange(1.0, 4), "--")
    panels = [
        pictures.Panel("one", "y", [pictures.Lines("one", t.square() + 1e-3)], logarithmic=True),
        pictures.Panel("many", "y", [many]),
    ]
    is_drawn(pictures.over_time(t, panels, "title"), 2)
