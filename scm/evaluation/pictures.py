"""Pictures as uint8 arrays (H, W, 3): grids of samples, the denoising strip, curves, maps.

Figures have axes labelled with units and an opaque background: they are readable on a dark and on
a light page.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from scm.core.files import write_atomic

GRAY = "#808080"
COLOURS = colormaps["viridis"]
TIME = "t (radians; 0 is data, π/2 is noise)"


@dataclass(frozen=True)
class Lines:
    """Curves over one axis, and how to draw them."""

    name: str
    y: Tensor  # (T,) or (T, N): N curves, coloured in their order
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """One set of axes of curves over t."""

    title: str
    ylabel: str
    lines: list[Lines]
    logarithmic: bool = False


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
    figure, [axes] = _figure(title, 1, width=6)
    bins = np.linspace(float(reference.min()) * 1.3, float(reference.max()) * 1.3, 61)
    axes.hist(reference.flatten().numpy(), bins, density=True, color=GRAY, alpha=0.5, label="data")
    inside = x[(x >= bins[0]) & (x <= bins[-1])]  # a density of none is not a number
    if len(inside):
        axes.hist(inside.numpy(), bins, density=True, histtype="step", color="C0", label="samples")
    _explain(axes, xlabel="x", ylabel="density")
    return _render(figure)


def curves(
    x: Tensor, lines: dict[str, Tensor], *, xlabel: str, ylabel: str, title: str
) -> np.ndarray:
    """Curves over a logarithmic axis, both axes logarithmic.

    Values that are not positive and finite are left out; where none is, the axis stays linear.
    """
    figure, [axes] = _figure(title, 1, width=6)
    shown = {name: torch.where((y > 0) & y.isfinite(), y, math.nan) for name, y in lines.items()}
    for name, y in shown.items():
        axes.plot(x.numpy(), y.double().numpy(), marker="o", ms=3, label=name)
    axes.set_xscale("log")
    if any(y.isfinite().any() for y in shown.values()):
        axes.set_yscale("log")
    _explain(axes, xlabel=xlabel, ylabel=ylabel)
    return _render(figure)


def over_time(t: Tensor, panels: list[Panel], title: str) -> np.ndarray:
    """Panels of curves over t (T,), side by side."""
    figure, axes = _figure(title, len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        colours = COLOURS(np.linspace(0, 0.9, len(panel.lines)))
        for lines, own in zip(panel.lines, colours, strict=True):
            y = lines.y.reshape(len(t), -1).numpy()
            many = COLOURS(np.linspace(0, 0.9, y.shape[1]))
            axis.set_prop_cycle(color=[own] if y.shape[1] == 1 else many)
            drawn = axis.plot(t.numpy(), y, lines.style, lw=1.2, ms=3)
            drawn[0].set_label(lines.name)
        axis.set_yscale("log" if panel.logarithmic else "linear")
        _explain(axis, xlabel=TIME, ylabel=panel.ylabel, title=panel.title)
    return _render(figure)


def compared_maps(
    x: Tensor,
    y: Tensor,
    values: dict[str, Tensor],
    *,
    xlabel: str,
    ylabel: str,
    unit: str,
    title: str,
) -> np.ndarray:
    """Two maps (Y, X) on one scale, and their difference on its own.

    x (X,) and y (Y,) are the axes' values. A scale leaves out the outermost hundredth of the
    values at either end, which is drawn in the end's colour: a few points of a tangent field would
    else hide the rest.
    """
    (first, a), (second, b) = values.items()
    shared, apart = _limits(torch.stack([a, b])), _limits(a - b)
    largest = max(map(abs, apart))
    maps = {
        first: (a, shared),
        second: (b, shared),
        f"{first} - {second}": (a - b, (-largest, largest)),
    }
    figure, axes = _figure(title, 3)
    for panel, (name, (data, limits)) in zip(axes, maps.items(), strict=True):
        image = panel.pcolormesh(
            x.numpy(), y.numpy(), data.numpy(), cmap=COLOURS, clim=limits, shading="nearest"
        )
        panel.set(xlabel=xlabel, ylabel=ylabel, title=name)
        figure.colorbar(image, ax=panel, label=unit, extend="both")
    return _render(figure)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def _limits(values: Tensor) -> tuple[float, float]:
    low, high = np.nanpercentile(values.numpy(), [1, 99])
    return (low, high) if high > low else (low - 1e-6, high + 1e-6)


def _figure(title: str, panels: int, width: float = 5) -> tuple[Figure, Any]:
    """A figure of so many axes side by side, each as many hundred pixels wide."""
    figure = Figure((width * panels, 4), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(title)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _explain(axes: Any, **labels: str) -> None:
    axes.set(**labels)
    axes.grid(color=GRAY, alpha=0.3)
    axes.legend(framealpha=0.9)


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
