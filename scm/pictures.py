"""Pictures as uint8 arrays (H, W, 3): grids of samples, the denoising strip, curves. Draws only."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from scm.files import write_atomic

GRAY = "#808080"  # axes and text: readable on a dark and on a light page


def grid(images: Tensor, columns: int) -> np.ndarray:
    """(N, C, H, W) in [-0.5, 0.5] -> one picture, enlarged twice so that pixels can be seen."""
    shown = images.float().add(0.5).nan_to_num().clamp(0, 1)  # a diverged network's too
    tiles = make_grid(shown, nrow=columns, padding=1, pad_value=0.5)
    large = tiles.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return large.mul(255).round().byte().permute(1, 2, 0).numpy()


def strip(noisy: Tensor, denoised: Tensor) -> np.ndarray:
    """(N, T, C, H, W) each -> per image a row of x_t over T times, and f(x_t, t) below it."""
    rows = torch.stack([noisy, denoised], 1).flatten(0, 2)
    return grid(rows, columns=noisy.shape[1])


def histogram(x: Tensor, reference: Tensor, title: str) -> np.ndarray:
    """One-dimensional samples (N, ...) beside reference ones, as densities."""
    figure, axes = _figure("x", "density", title)
    bins = np.linspace(float(reference.min()) * 1.3, float(reference.max()) * 1.3, 61)
    axes.hist(reference.flatten().numpy(), bins, density=True, color=GRAY, alpha=0.5, label="data")
    inside = x[(x >= bins[0]) & (x <= bins[-1])]  # a density of none is not a number
    if len(inside):
        axes.hist(inside.numpy(), bins, density=True, histtype="step", color="C0", label="samples")
    _legend(axes)
    return _render(figure)


def curves(
    x: Tensor, lines: dict[str, Tensor], *, xlabel: str, ylabel: str, title: str
) -> np.ndarray:
    """Curves over a logarithmic axis, both axes logarithmic.

    Values that are not positive and finite are left out; where none is, the axis stays linear.
    """
    figure, axes = _figure(xlabel, ylabel, title)
    shown = {name: torch.where((y > 0) & y.isfinite(), y, math.nan) for name, y in lines.items()}
    for name, y in shown.items():
        axes.plot(x.numpy(), y.double().numpy(), marker="o", ms=3, label=name)
    axes.set_xscale("log")
    if any(y.isfinite().any() for y in shown.values()):
        axes.set_yscale("log")
    _legend(axes)
    return _render(figure)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def _figure(xlabel: str, ylabel: str, title: str):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(color=GRAY, alpha=0.3)
    return figure, axes


def _legend(axes) -> None:  # type: ignore[no-untyped-def]
    axes.legend(frameon=False)


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
