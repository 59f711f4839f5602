"""The page of a comparison: one HTML text with its style, charts and pictures inside.

No script and no network; light or dark as the browser asks. Every name that a run or a user gave
is escaped.
"""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from scm import svg, tags
from scm.compare import (
    Cell,
    Comparison,
    Where,
    curve,
    over_calls,
    over_images,
    over_minutes,
)
from scm.runs import Run, Setting
from scm.svg import Series

LINES = 12  # settings in a chart
GRIDS = 12  # settings whose samples are shown
LARGEST = 400_000  # bytes of a picture
STYLE = """
:root{--bg:#fff;--ink:#1c2127;--soft:#5c6670;--edge:#dfe3e8;--card:#f6f7f9;
--best:#0a6b3d;--bad:#b3261e;--c0:#1668c7;--c1:#d1600a;--c2:#2b8a3e;--c3:#8a3ffc;--c4:#c2255c;--c5:#0b8a8f;--c6:#8a6d00;
--c7:#5c6670}
@media(prefers-color-scheme:dark){:root{
--bg:#14171b;--ink:#e6e9ed;--soft:#9aa5b1;--edge:#323a43;
--card:#1d2228;--best:#5fd394;--bad:#ff8a80;
--c0:#6cb2ff;--c1:#ff9f52;--c2:#69db7c;--c3:#c0a0ff;
--c4:#ff85ab;--c5:#4fd6dc;--c6:#e6c84a;--c7:#aab4bf}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 16px 64px;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0}h2{font-size:1.15rem;margin:2em 0 .6em}
p,li{max-width:75ch}.soft{color:var(--soft);font-size:.9rem}
code,pre{font:.85rem/1.45 ui-monospace,Menlo,Consolas,monospace}
pre{background:var(--card);border:1px solid var(--edge);border-radius:6px;padding:10px;
overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere}
.scroll{overflow-x:auto;border:1px solid var(--edge);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:left;border-bottom:1px solid var(--edge);vertical-align:top}
th{background:var(--card);font-weight:600}tr:last-child>td{border-bottom:0}
td.n,th.n{text-align:right;white-space:nowrap}td .soft{display:block;font-size:.78rem}
.best{color:var(--best);font-weight:700}.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--edge);border-radius:8px}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:6px;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:var(--edge);stroke-width:1;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.band{opacity:.16}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;padding:0;list-style:none;
font-size:.9rem}
.legend i{display:inline-block;width:18px;height:0;border-top:3px solid;vertical-align:middle;
margin-right:6px}
.legend i.dash{border-top-style:dashed}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(45%,210px),1fr));gap:16px}
.samples img{width:100%;image-rendering:auto;display:block;border-radius:4px}
details{border-bottom:1px solid var(--edge);padding:8px 0}
summary{cursor:pointer;overflow-wrap:anywhere}
"""
NAMES = {
    "frechet_distance": "FD",
    "frechet_distance_train": "FD to training images",
    "loss": "held-out loss",
    "error": "held-out error",
}


def head(tag: str) -> str:
    """`final/one_step/frechet_distance` -> `one_step FD`."""
    parts = tag.split("/")
    name = NAMES.get(parts[-1], parts[-1].replace("_", " "))
    return f"{parts[1]} {name}" if len(parts) > 2 else name


def number(cell: Cell) -> str:
    """`3.21 ± 0.12`, a dash where there is nothing."""
    if cell.interval is None:
        return "-"
    half = cell.interval.half
    return f"{cell.interval.mean:.4g}" + (f" ± {half:.2g}" if half is not None else "")


def tested(cell: Cell) -> str:
    """`p 0.03`, marked where it cannot be told from the best."""
    if cell.p is None:
        return ""
    p = "p < 0.001" if cell.p < 0.001 else f"p {cell.p:.2g}"
    return f"{'≈ ' if cell.alike else ''}{p}"


def warnings(result: Comparison) -> list[str]:
    """What makes a comparison doubtful, a sentence each."""
    said = []
    for what, values in (
        ("commits", {run.record.get("git_commit") for run in result.runs}),
        ("devices", {run.record.get("device") for run in result.runs}),
        ("feature networks", {_features(run) for run in result.runs}),
    ):
        several = sorted(str(value) for value in values - {None})
        if len(several) > 1:
            said.append(f"These runs are of different {what}: {', '.join(several)}.")
    return said


def _features(run: Run) -> str | None:
    found = run.record.get("quality", {}).get("features_sha256")
    return None if found is None else str(found)


def html(result: Comparison, asked: dict[str, Any], note: str) -> str:
    """The whole page."""
    title = str(asked.get("question") or asked.get("name") or f"{len(result.runs)} runs")
    done = sum(run.done for run in result.runs)
    intro = f"{done} of {len(result.runs)} runs done, {len(result.settings)} settings."
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{intro}</p>",
        f"<pre>{escape(str(asked['command']))}</pre>" if asked.get("command") else "",
        *(f'<p class="bad">{escape(said)}</p>' for said in warnings(result)),
        "<h2>Settings compared</h2>",
        _table(result),
        f'<p class="soft">{escape(note.replace("**", ""))}</p>',
        _charts(result),
        _samples(result),
        "<h2>Runs</h2>",
        *map(_run, result.runs),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _table(result: Comparison) -> str:
    heads = "".join(f'<th class="n">{escape(head(tag))}</th>' for tag in result.columns)
    rows = []
    for setting in result.settings:
        cells = "".join(_cell(result.cells[setting.label, tag]) for tag in result.columns)
        rows.append(
            f"<tr><td>{escape(setting.label)}</td><td>{escape(setting.statuses())}</td>{cells}</tr>"
        )
    table = f"<table><thead><tr><th>setting</th><th>runs</th>{heads}</tr></thead><tbody>"
    return f'<div class="scroll">{table}{"".join(rows)}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    kind = "paired by seed" if cell.paired else "Welch"
    test = f'<span class="soft" title="{kind}">{tested(cell)}</span>' if cell.p is not None else ""
    return f'<td class="n{" best" if cell.best else ""}">{number(cell)}{test}</td>'


def _shown(result: Comparison) -> list[Setting]:
    """The settings that fit into a chart: those with the best mean of the first column first."""
    if len(result.settings) <= LINES:
        return list(result.settings)
    tag = result.columns[0]
    sign = tags.direction(tag) or -1

    def rank(setting: Setting) -> float:
        interval = result.cells[setting.label, tag].interval
        return float("inf") if interval is None else -sign * interval.mean

    return sorted(result.settings, key=rank)[:LINES]


def _charts(result: Comparison) -> str:
    shown = _shown(result)
    metrics = _curve_tags(result)
    figures = []
    for tag in metrics:
        ways: list[tuple[str, Where]] = [("images seen", over_images)]
        ways += [("minutes of training", over_minutes)]
        for xlabel, where in ways:
            lines = [curve(s, colour, tag, where) for colour, s in enumerate(shown)]
            figures.append(_figure(head(tag), lines, xlabel, log_y=True))
    calls = [over_calls(s, colour, result.columns) for colour, s in enumerate(shown)]
    if any(len(line.x) > 1 for line in calls):
        figures.append(_figure("FD against network calls", calls, "network calls", log_x=True))
    tangents = [curve(s, colour, "tangent/rms", over_images) for colour, s in enumerate(shown)]
    figures.append(_figure("tangent norm (RMS of g)", tangents, "images seen", log_y=True))
    figures = [figure for figure in figures if figure]
    if not figures:
        return ""
    left = len(result.settings) - len(shown)
    more = f" The {len(shown)} best of {len(result.settings)} settings." if left else ""
    return (
        "<h2>Over training</h2>"
        '<p class="soft">Lines: the mean over seeds; bands: from the lowest to the highest.'
        f"{more}</p>"
        f'{_legend(shown)}<div class="charts">{"".join(figures)}</div>'
    )


def _curve_tags(result: Comparison) -> list[str]:
    """What is measured during training of what the table shows."""
    wanted = [tag.replace("final/", "quality/") for tag in result.columns]
    chosen = [tag for tag in wanted if tag.endswith((tags.HEADLINE, "_rms"))] or [tags.LOSS]
    return list(dict.fromkeys(chosen))


def _figure(title: str, lines: Sequence[Series], xlabel: str, **logs: bool) -> str:
    drawn = svg.chart(lines, title=f"{title} over {xlabel}", xlabel=xlabel, **logs)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>" if drawn else ""


def _legend(shown: Sequence[Setting]) -> str:
    items = [
        f"<li><i{' class=dash' if k >= svg.COLOURS else ''} "
        f'style="border-color:var(--c{k % svg.COLOURS})"></i>{escape(setting.label)}</li>'
        for k, setting in enumerate(shown)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _samples(result: Comparison) -> str:
    figures = []
    for setting in _shown(result)[:GRIDS]:
        run = next((run for run in setting.runs if run.pictures()), None)
        for name, file in run.pictures().items() if run else ():
            if file.stat().st_size <= LARGEST:
                data = base64.b64encode(file.read_bytes()).decode()
                caption = escape(f"{setting.label}: {name}")
                figures.append(
                    f"<figure><figcaption>{caption}</figcaption>"
                    f'<img loading="lazy" alt="samples of {caption}" '
                    f'src="data:image/png;base64,{data}"></figure>'
                )
    if not figures:
        return ""
    return (
        '<h2>Samples</h2><p class="soft">From the same noise; the first seed of each setting, its '
        f'last evaluation.</p><div class="samples">{"".join(figures)}</div>'
    )


def _run(run: Run) -> str:
    facts = {
        "seed": run.seed,
        "steps": run.record.get("steps"),
        "training": f"{run.record.get('seconds', 0) / 60:.1f} min",
        "commit": str(run.record.get("git_commit", "unknown"))[:12],
        "device": run.record.get("device"),
    }
    said = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    status = "" if run.done else ' class="bad"'
    parts = [
        f"<summary>{escape(run.path.name)}: <span{status}>{escape(run.status)}</span></summary>",
        f'<p class="soft">{escape(said)}<br>{escape(" ".join(run.overrides))}</p>',
        f"<pre>{escape(run.command)}</pre>" if run.command else "",
        f"<pre>{escape(run.failure)}</pre>" if run.failure else "",
    ]
    return f"<details>{''.join(parts)}</details>"
