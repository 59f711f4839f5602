"""Fills templates: a comparison's page, which needs no other file, its Markdown, a model's card."""

from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from scm.report import charts, curves, study, tables
from scm.report.read import is_finite


def filled(template: str, **values: Any) -> str:
    """The text of `page.html.j2`, which escapes every name, or of another template."""
    pages = Environment(
        loader=PackageLoader("scm.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {name: getattr(tables, name) for name in ("head", "number", "tested", "plain")}
    pages.filters["shown"] = study.shown
    pages.filters |= {"svg": lambda chart: charts.drawn([chart]).encode(), "inline": _inline}
    pages.tests["finite"] = is_finite
    pages.globals |= {"curves": curves, "look": charts.look}
    return pages.get_template(template).render(values)


def _inline(data: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
