"""Pictures of what is not a number: a diverged network is shown, and does not end the run."""

import math

import pytest
import torch

from scm.evaluation import pictures

pytestmark = pytest.mark.pictures
X = torch.tensor([0.1, 1.0, 10.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, 3e38])
def test_curves_of_values_that_a_logarithmic_axis_cannot_hold(bad):
    for values in ([bad, bad, bad], [1.0, bad, 2.0]):
        lines = {"error": torch.tensor(values)}
        picture = pictures.curves(X, lines, xlabel="x", ylabel="y", title="t")
        assert picture.shape == (400, 600, 3) and picture.std() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_grids_and_histograms_of_what_is_no_picture(bad):
    images = torch.full((4, 1, 2, 2), bad)
    grid = pictures.grid(images, 2)
    assert grid.shape == (14, 14, 3)
    expected = 255 if bad > 0 else 0
    assert (grid[2:6, 2:6] == expected).all()
    reference = torch.linspace(-1, 1, 20)
    assert pictures.histogram(images, reference, "t").shape == (400, 600, 3)
