"""Figures of matplotlib as uint8 arrays (H, W, 3): maps, curves over time. Draws only.

One colour map everywhere, axes labelled with units, an opaque background: they are readable on a
dark and on a light page.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = colormaps["viridis"]
GRID = {"color": "#808080", "alpha": 0.3}
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
    figure, axes = _figure(title, 3)
    shared = _limits(np.stack([a.numpy(), b.numpy()]))
    difference = (a - b).numpy()
    largest = max(abs(limit) for limit in _limits(difference))
    for panel, name, data, (low, high) in (
        (axes[0], first, a.numpy(), shared),
        (axes[1], second, b.numpy(), shared),
        (axes[2], f"{first} - {second}", difference, (-largest, largest)),
    ):
        image = panel.pcolormesh(
            x.numpy(), y.numpy(), data, cmap=COLOURS, vmin=low, vmax=high, shading="nearest"
        )
        panel.set(xlabel=xlabel, ylabel=ylabel, title=name)
        figure.colorbar(image, ax=panel, label=unit, extend="both")
    return _render(figure)


def over_time(t: Tensor, panels: list[Panel], title: str) -> np.ndarray:
    """Panels of curves over t (T,), side by side."""
    figure, axes = _figure(title, len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for number, lines in enumerate(panel.lines):
            y = lines.y.reshape(len(t), -1).numpy()
            many = y.shape[1] > 1
            colours = COLOURS(np.linspace(0, 0.9, y.shape[1] if many else len(panel.lines)))
            for k, curve in enumerate(y.T):
                colour = colours[k if many else number]
                name = lines.name if k == 0 else None
                axis.plot(t.numpy(), curve, lines.style, color=colour, lw=1.2, ms=3, label=name)
        axis.set(xlabel=TIME, ylabel=panel.ylabel, title=panel.title)
        axis.set_yscale("log" if panel.logarithmic else "linear")
        axis.grid(**GRID)
        axis.legend(framealpha=0.9)
    return _render(figure)


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [1, 99])
    return (low, high) if high > low else (low - 1e-6, high + 1e-6)


def _figure(title: str, panels: int):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(5 * panels, 4), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(title)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
