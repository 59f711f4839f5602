"""docs/tour.ipynb: its cells run in order, and what it stores is what they give."""

import ast
import base64
import io
import json
import re
import tempfile
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILE = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"
LARGEST = 400_000  # bytes
NOTEBOOK = json.loads(FILE.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"]


def stored(cell):
    """What a cell has printed, and its picture as an array or None."""
    said, picture = "", None
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            said += "".join(output["text"])
        else:
            assert output["output_type"] == "execute_result" and [*output["data"]] == ["image/png"]
            data = base64.b64decode("".join(output["data"]["image/png"]))
            picture = np.asarray(Image.open(io.BytesIO(data)))
    return said, picture


def run(source, names):
    """The same of a cell that is run now: a notebook shows its last expression."""
    body = ast.parse(source)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    shown, said = None, io.StringIO()
    with redirect_stdout(said):
        exec(compile(body, str(FILE), "exec"), names)
        if last:
            shown = eval(compile(ast.Expression(last.value), str(FILE), "eval"), names)
    return said.getvalue(), None if shown is None else np.asarray(shown)


def test_it_is_small_and_names_no_machine():
    assert FILE.stat().st_size < LARGEST
    for cell in CODE:
        outputs = json.dumps([{**one, "data": None} for one in cell["outputs"]])
        assert not re.search(r"/(tmp|root|home|usr|Users)\b|site-packages", outputs), outputs


def test_every_cell_is_explained_and_has_what_it_gave():
    kinds = [cell["cell_type"] for cell in NOTEBOOK["cells"]]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    assert all(cell["outputs"] for cell in CODE) and "$$" in "".join(TEXT)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", "".join(TEXT))
    assert len(links) >= 3 and [link for link in links if not (FILE.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.pictures
def test_its_cells_give_what_it_stores(tmp_path, monkeypatch):
    """Pictures nearly: on another machine a few of their pixels round another way."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in CODE:
        (said, picture), (then_said, then) = run("".join(cell["source"]), names), stored(cell)
        assert re.sub(r"\d", "0", said) == re.sub(r"\d", "0", then_said)
        assert (picture is None) == (then is None)
        if picture is not None:
            assert picture.shape == then.shape
            assert np.abs(picture.astype(int) - then).mean() < 4
