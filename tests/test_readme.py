"""What the README promises is there: functions and tests of its table, files of its tree."""

import importlib
import re
from pathlib import Path

import pytest

from scm import results

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
ROWS = re.findall(r"\| `(scm\.[\w.]+)` \| `(test_\w+\.py)::(\w+)` \|", README)
TREE = re.findall(r"^(run\.py|(?:scm|conf|sweeps|tests)/[\w./]*) +(.+)$", README, re.MULTILINE)


def test_the_table_and_the_tree_were_found():
    assert len(ROWS) >= 20 and len(TREE) >= 30


@pytest.mark.parametrize(("function", "file", "test"), ROWS, ids=[row[2] for row in ROWS])
def test_every_row_of_the_table_exists(function, file, test):
    module, _, name = function.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    assert f"def {test}(" in (REPOSITORY / "tests" / file).read_text()


def test_the_tree_is_whole():
    listed = {path.rstrip("/") for path, _ in TREE}
    modules = {f"scm/{path.name}" for path in (REPOSITORY / "scm").glob("*.py")} - {
        "scm/__init__.py"
    }
    assert listed >= modules and all((REPOSITORY / path).exists() for path in listed)
    too_long = [path for path, words in TREE if len(words.split()) > 7]
    assert too_long == []


def test_the_table_of_results_is_the_commands_output():
    shown = re.search(
        r"<!-- python -m scm.results pretrained/\*.json -->\n(.*?)\n<!-- end -->", README, re.S
    )
    files = sorted((REPOSITORY / "pretrained").glob("*.json"))
    assert shown and shown[1] == results.table([results.read(file) for file in files])


def test_every_picture_and_link_to_a_file_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("sweep", ["tangent", "time_embedding", "weighting", "discretization"])
def test_the_tables_of_ablations_are_the_reports(sweep):
    """README shows one row per setting, cut from the summary.md that the sweep wrote."""
    section = re.search(rf"<!-- {sweep} -->\n(.*?)\n<!-- end -->", README, re.S)
    written = (REPOSITORY / "docs" / "ablations" / sweep / "summary.md").read_text()
    settings = re.findall(r"^\| (\w[^|]*=[^|]*) \|", written, re.MULTILINE)
    assert section and len(settings) >= 4
    shown = [line.strip("|").split("|") for line in section[1].splitlines()[2:]]
    assert [cells[0].strip() for cells in shown] == settings
    for setting, one_step, two_steps in shown:
        row = next(line for line in written.splitlines() if line.startswith(f"|{setting}|"))
        assert row.split("|")[3:5] == [one_step, two_steps]
