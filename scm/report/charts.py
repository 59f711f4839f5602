"""Draws lines with their ranges as SVG that reads on light and on dark pages; sheets of samples."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from PIL import Image

from scm.report.curves import Chart
from scm.report.read import Setting

COLOURS = (
    *("#3b82d6", "#e07b1a", "#36a35a", "#9b6cf0", "#e0568b", "#1aa5a8", "#a88a12", "#808890"),
)
WIDTH, HEIGHT, ROW = 4.6, 3.0, 0.2  # inches: of a chart, and of a row of the legend
TWO_ROWS, SAMPLERS = 1.1, 5  # inches of a row of samples; most samplers beside each other
SHEET_WIDTH, COLOURS_KEPT = 3.4, 16  # inches of a sampler's column; colours of the sheet
LARGEST = 4000  # pixels of a side of a picture of samples
LONGEST = 100  # characters of a name
LOG_FROM, MANY_DECADES = 8, 1000  # largest over smallest value: a logarithmic axis, fewer ticks
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE = ["default", str(Path(__file__).with_name("charts.mplstyle"))]


def look(style: int) -> tuple[str, str]:
    """Colour and dashes of a place in the legend, as matplotlib and CSS both name them."""
    return COLOURS[style % len(COLOURS)], "dashed" if style >= len(COLOURS) else "solid"


def drawn(charts: Sequence[Chart], labels: Sequence[str] = ()) -> str:
    """Charts side by side; with labels also their titles and a legend. Empty without charts."""
    if not charts:
        return ""
    per_row = 2 if max(map(len, labels), default=0) <= LONGEST / 2 else 1
    height = HEIGHT + ROW * -(-len(labels) // per_row)
    with matplotlib.style.context(STYLE):
        figure = Figure((WIDTH * len(charts), height), layout="constrained")
        places = figure.subplots(1, len(charts), squeeze=False)[0]
        for axes, chart in zip(places, charts, strict=True):
            axes.set_title(_printable(chart.title) if labels else "")
            _draw(axes, chart)
        if labels:
            keys = [Line2D([], [], color=look(k)[0], ls=look(k)[1]) for k in range(len(labels))]
            none = [""] * len(keys)  # at first, since a label that begins with _ would be left out
            legend = figure.legend(keys, none, loc="outside lower left", ncols=per_row)
            for text, label in zip(legend.get_texts(), labels, strict=True):
                text.set_text(_printable(label))
        return _svg(figure)


def _printable(text: str) -> str:
    """Short and on one line, without characters that no XML may hold."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST])


def _draw(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        low, mean, high = ([f(seeds) for seeds in line.values] for f in (min, fmean, max))
        ink, dashes = look(line.style)
        marker = "o" if chart.points or len(line.x) == 1 else ""
        axes.plot(line.x, mean, color=ink, ls=dashes, marker=marker, ms=4)
        axes.fill_between(line.x, low, high, color=ink, alpha=0.16, lw=0)
        place = (line.x[0], mean[0])
        axes.annotate(_printable(line.note), place, xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel(chart.xlabel)
    if chart.points:
        _logarithmic(axes, "x", [x for line in chart.lines for x in line.x])
    _logarithmic(axes, "y", [y for line in chart.lines for seeds in line.values for y in seeds])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short(value))
        axis.set_minor_formatter(NullFormatter())


def _logarithmic(axes: Axes, name: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic with few round ticks, where its values span enough for that."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= LOG_FROM:
        axes.set(**{f"{name}scale": "log"})
        ticks = LogLocator(subs=(1, 2, 5) if high / low < MANY_DECADES else (1,))
        getattr(axes, f"{name}axis").set_major_locator(ticks)


def short(value: float) -> str:
    """A number in few characters: 12, 0.031, 64k."""
    return EngFormatter(sep="").format_eng(value) if 1e3 <= abs(value) < 1e12 else f"{value:.3g}"


def samples(settings: Sequence[Setting], columns: Sequence[str]) -> bytes:
    """A PNG: a row per setting with the first two rows of its samplers' grids. Empty without.

    Samplers stand in the order of `columns`, the tags of a comparison.
    """
    shown = [(setting.label, pictures) for setting in settings if (pictures := setting.pictures())]
    drawn = {name for _, pictures in shown for name in pictures}
    ordered = dict.fromkeys([*(tag.split("/")[1] for tag in columns), *sorted(drawn)])
    names = [name for name in ordered if name in drawn][:SAMPLERS]
    if not names:
        return b""
    size = (SHEET_WIDTH * len(names), TWO_ROWS * len(shown) + ROW)
    with matplotlib.style.context(STYLE):
        figure = Figure(size, layout="constrained", facecolor="white")
        places = figure.subplots(len(shown), len(names), squeeze=False)
        for (label, pictures), row in zip(shown, places, strict=True):
            row[0].set_title(_printable(label), loc="left")
            for name, axes in zip(names, row, strict=True):
                axes.set_axis_off()
                if (image := _opened(pictures.get(name, b""))) is not None:
                    width, height = image.size
                    axes.imshow(image.crop((0, 0, width, height // (4 if width == height else 1))))
                    axes.set_title(name, loc="right")
        canvas, file = FigureCanvasAgg(figure), io.BytesIO()
        canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    picture.convert("RGB").quantize(COLOURS_KEPT).save(file, "png", optimize=True)
    return file.getvalue()


def _opened(png: bytes) -> Image.Image | None:
    """The picture; None where it is damaged, or would be too large once unpacked."""
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        return image.convert("RGB") if max(image.size) <= LARGEST else None
    except Exception:  # of PIL, about a damaged file: of many kinds
        return None


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    with warnings.catch_warnings():  # of letters that matplotlib's font lacks and a browser's has
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    return file.getvalue()
