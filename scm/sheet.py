"""A comparison as one SVG picture, for a document: quality and tangent norm over the images seen.

It stands alone, light or dark as the browser asks, and is drawn with the page's charts and colours.
"""

from html import escape

from scm import page, svg
from scm.compare import Comparison, curve, over_images

TITLE, ROW, MARGIN = 30, 20, 16  # heights of a chart's title and of a legend's row; the edge
PER_ROW = 2  # charts and legend entries side by side
STYLE = "text{fill:var(--ink);font:13px system-ui,sans-serif}.name{font-weight:600}"


def sheet(result: Comparison) -> str:
    """The picture; empty where no run has anything to draw."""
    shown = page.settings_shown(result)
    quality = page.curve_tags(result)[0]
    wanted = {page.head(quality): quality, page.TANGENT_NORM: "tangent/rms"}
    charts = {}
    for title, tag in wanted.items():
        lines = [curve(s, colour, tag, over_images) for colour, s in enumerate(shown)]
        charts[title] = svg.chart(lines, title=title, xlabel="images seen", log_y=True)
    drawn = {title: chart for title, chart in charts.items() if chart}
    if not drawn:
        return ""
    width = 2 * MARGIN + len(drawn) * svg.WIDTH
    top = MARGIN + TITLE + svg.HEIGHT
    height = top + MARGIN + -(-len(shown) // PER_ROW) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<style>{page.COLOURS}{page.CHARTS}{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="var(--bg)"/>',
    ]
    for k, (title, chart) in enumerate(drawn.items()):
        x, size = MARGIN + k * svg.WIDTH, f'width="{svg.WIDTH}" height="{svg.HEIGHT}"'
        parts.append(
            f'<text class="name" x="{x + svg.LEFT}" y="{MARGIN + 14}">{escape(title)}</text>'
        )
        parts.append(chart.replace("<svg ", f'<svg x="{x}" y="{MARGIN + TITLE}" {size} ', 1))
    column = width // PER_ROW - MARGIN
    for k, setting in enumerate(shown):
        left, y = MARGIN + k % PER_ROW * column, top + k // PER_ROW * ROW
        line = f'stroke="var(--c{k % svg.COLOURS})"{svg.dashes(k)} d="M{left + 4} {y + 8}h22"'
        parts.append(f'<path class="line" {line}/>')
        parts.append(f'<text x="{left + 34}" y="{y + 13}">{escape(setting.label)}</text>')
    return "\n".join([*parts, "</svg>\n"])
