"""Reports from folders as runs leave them: finished, running, failed, cut short, badly named."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from scm.commands import report
from scm.config import metrics
from scm.core.errors import UserError
from scm.report import charts, compare, curves, read, tables

CONFIG = {
    "optimized_metric": None,
    "trainer": {"batch_size": 10},
    "sampler": {"one_step": {"times": []}, "two_step": {"times": [1.1]}},
}


def a_run(folder, name, seed, distance, *, status="done", **more):
    path = folder / name
    (path / ".hydra").mkdir(parents=True)
    config = {**CONFIG, "seed": seed, "weighting": {"_target_": name.partition(",")[0]}}
    overrides = [name.partition(",")[0], f"seed={seed}", "trainer.budget.steps=2"]
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    metrics = {
        "final/one_step/frechet_distance": distance,
        "final/two_step/frechet_distance": distance / 2,
        "final/one_step/recall": 1 / distance,
        "eval/one_step/calls": 1,
        "eval/two_step/calls": 2,
    }
    record = {"status": status, "seconds": 120.0, "git_commit": "abc", "metrics": metrics, **more}
    (path / "metrics.json").write_text(json.dumps(record))
    lines = [
        {"step": 1, "usage/seconds": 60.0, "tangent/rms": 4.0},
        {"step": 2, "usage/seconds": 120.0, "tangent/rms": 2.0},
        {"step": 2, "quality/one_step/frechet_distance": distance},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 3, "tang')
    return path


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1, 2):
        a_run(tmp_path, f"weighting=unit,seed={seed}", seed, 10 + seed)
        a_run(tmp_path, f"weighting=no_prior,seed={seed}", seed, 20 + seed + 0.1 * seed**2)
    return tmp_path


def test_settings_are_runs_that_differ_by_seed_alone(folder):
    found = read.settings(read.found([folder]))
    assert {s.label: len(s.runs) for s in found} == {"weighting=unit": 3, "weighting=no_prior": 3}
    assert found[0].values("final/one_step/recall").keys() == {0, 1, 2}


def test_runs_that_broke_are_counted_beside_those_that_ended(folder):
    a_run(folder, "weighting=unit,seed=3", 3, 400, broke_at=41)
    a_run(folder, "weighting=unit,seed=4", 4, 12, broke_at=None)
    statuses = {s.label: s.statuses() for s in read.settings(read.found([folder]))}
    assert statuses == {"weighting=unit": "5 done, 1 broke", "weighting=no_prior": "3 done"}


def test_labels_are_short_where_that_is_unambiguous(tmp_path):
    for k, keys in enumerate((("a.x", "objective/tangent"), ("b.x", "objective/tangent"))):
        path = a_run(tmp_path, f"run{k}", 0, 10)
        texts = [f"{key}={k}.123456" for key in keys]
        (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(texts))
    labels = [setting.label for setting in read.settings(read.found([tmp_path]))]
    assert labels == ["a.x=0.1235, tangent=0.1235", "b.x=1.123, tangent=1.123"]


def test_the_best_is_marked_by_the_metrics_direction_and_tested_by_seed(folder):
    result = compare.compared(read.found([folder]))
    assert metrics.direction("final/x/recall") == 1 and metrics.direction("eval/loss") == -1
    assert metrics.direction("final/x/memorisation") == 0
    for tag in result.columns:  # unit has the lower distances, and 1 / distance as its recall
        best, other = (result.cells[f"weighting={w}", tag] for w in ("unit", "no_prior"))
        assert best.best and not other.best and best.p is None
        assert other.p < 0.01
    cell = result.cells["weighting=unit", "final/one_step/frechet_distance"]
    assert cell.mean == 11 and cell.half == pytest.approx(2.4841, abs=1e-3)


def test_curves_are_over_images_and_minutes_with_the_seeds_range(folder):
    (unit,) = [s for s in read.settings(read.found([folder])) if s.label == "weighting=unit"]
    tag = "quality/one_step/frechet_distance"
    line = curves.curve(unit, 0, tag, curves.over_images)
    assert (line.x, line.values) == ([20.0], [[10, 11, 12]])
    assert curves.curve(unit, 0, tag, curves.over_minutes).x == [2.0]
    (calls,) = curves.over_calls(unit, 0, compare.columns(unit.runs))
    assert (calls.x, calls.values) == ([1, 2], [[10, 11, 12], [5, 5.5, 6]])


def test_each_kind_of_sampler_has_its_line_against_calls(tmp_path):
    path = a_run(tmp_path, "weighting=unit,seed=0", 0, 10)
    a_run(tmp_path, "weighting=no_prior,seed=0", 0, 12)
    calls = {"heun_3": 3, "heun_5": 5, "heun_9": 9, "ddim_5": 5, "ddim_10": 10}
    config = yaml.safe_load((path / ".hydra" / "config.yaml").read_text())
    kinds = {name: f"scm.method.samplers.{name.partition('_')[0].title()}" for name in calls}
    config["sampler"] = {name: {"_target_": kind} for name, kind in kinds.items()}
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    record = json.loads((path / "metrics.json").read_text())
    record["metrics"] = {f"eval/{name}/calls": n for name, n in calls.items()}
    record["metrics"] |= {f"final/{name}/frechet_distance": 90 / n for name, n in calls.items()}
    record["metrics"]["final/heun_3/recall"] = 0.5
    (path / "metrics.json").write_text(json.dumps(record))
    result = report.write([tmp_path], tmp_path)
    assert not [tag for tag in result.columns if tag.endswith("recall")]  # of few samplers only
    one_kind, unit = sorted(result.settings, key=lambda setting: setting.label)
    heun, ddim = curves.over_calls(unit, 0, result.columns)
    assert (heun.note, heun.x, heun.values) == ("Heun", [3, 5, 9], [[30], [18], [10]])
    assert (ddim.note, ddim.x, ddim.values) == ("Ddim", [5, 10], [[18], [9]])
    assert [line.note for line in curves.over_calls(one_kind, 1, result.columns)] == [""]
    (drawn,) = curves.calls_charts(result)
    assert "Heun" in words(charts.drawn([drawn]))


def test_running_failed_and_broken_runs_are_shown_and_not_counted(folder):
    a_run(folder, "weighting=unit,seed=3", 3, 1000, status="running")
    a_run(folder, "weighting=unit,seed=4", 4, 1000, status="failed", traceback="a\nValueError: b")
    (folder / "weighting=unit,seed=0" / "metrics.json").write_text('{"status": "do')
    (folder / "begun" / ".hydra").mkdir(parents=True)
    (folder / "begun" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    result = report.write([folder], folder)
    cell = result.cells["weighting=unit", "final/one_step/frechet_distance"]
    assert cell.mean == 11.5
    assert cell.missing == 1 and not cell.best  # the failed one: the others may be the lucky ones
    assert result.cells["weighting=no_prior", "final/one_step/frechet_distance"].best
    text = (folder / "summary.md").read_text()
    assert "1 unreadable, 2 done, 1 running, 1 failed" in text and "ValueError: b" in text
    assert not report.report_sweep(folder)
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and {row["status"] for row in rows} >= {"new", "unreadable", "failed"}


def words(svg):
    """Everything that is written in a picture, which must be well-formed, whatever the names."""
    root = ElementTree.fromstring(svg)
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


class Tags(HTMLParser):
    """Every opened tag and link of a page."""

    def __init__(self):
        super().__init__()
        self.opened, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


EVIL = "<script>alert(1)</script>\"'$\\frac"


def test_the_page_stands_alone_and_escapes_every_name(folder):
    bad = a_run(folder, "weighting=evil,seed=0", 0, 15, status="failed", traceback=EVIL)
    (bad / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"weighting={EVIL}"]))
    (bad / ".hydra" / "command.txt").write_text(f"python run.py {EVIL}")
    record = {"question": f"Is {EVIL} so?", "name": "x", "command": EVIL}
    (folder / "sweep.json").write_text(json.dumps(record))
    a_run(folder, "weighting=late,seed=0", 0, 15, git_commit="def")
    (folder / "weighting=unit,seed=0" / "samples").mkdir()
    picture = folder / "weighting=unit,seed=0" / "samples" / "one_step_00000002.png"
    picture.write_bytes(b"\x89PNG")
    report.main([str(folder)])
    text = (folder / "report.html").read_text()
    page = Tags()
    page.feed(text)
    assert "script" not in page.opened and page.text.count(EVIL) >= 6
    assert all(link.startswith("data:image/") for link in page.links)
    assert "data:image/png;base64,iVBORw==" in page.links and not re.search(r"https?://", text)
    drawn = [link.partition("svg+xml;base64,")[2] for link in page.links if "svg+xml" in link]
    assert len(drawn) >= 4 and all(words(b64decode(svg)) for svg in drawn)
    for written in (text, (folder / "summary.md").read_text()):
        assert "These runs are of different commits: abc, def." in written
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text
    lines = (folder / "summary.md").read_text().splitlines()
    code = [line for line in lines if "<script" in line]  # indented by four: not read as HTML
    assert code and all(line.startswith("    ") for line in code)


def test_the_picture_stands_alone_with_every_setting_and_both_charts(folder):
    names = ["_a", "<b>&", "$x^$", "\u4e00"]
    for name in names:
        a_run(folder, f"weighting={name},seed=0", 0, 15)
    report.main([str(folder)])
    text = (folder / "summary.svg").read_text()
    wanted = {f"weighting={name}" for name in ("unit", "no_prior", *names)}
    assert wanted | {"one_step FD, while training", "tangent norm (RMS of g)"} <= set(words(text))
    assert "](summary.svg)" in (folder / "summary.md").read_text()
    links = re.findall(r'href="([^"]*)"', text)
    assert links and all(link.startswith("#") for link in links)
    report.main([str(folder)])
    assert (folder / "summary.svg").read_text() == text  # the same runs, the same picture


@pytest.mark.pictures
def test_the_sheet_has_a_row_per_setting_and_survives_damaged_pictures(folder):
    """Two rows of each grid; of a picture that is no grid the whole."""
    samples = [path / "samples" for path in sorted(folder.glob("weighting=*")) if path.is_dir()]
    for path in samples:
        path.mkdir(exist_ok=True)
        pixels = np.zeros((64, 64), np.uint8)
        pixels[:16], pixels[16:] = 200, 90  # what is to be seen, and what is not
        Image.fromarray(pixels).save(path / "one_step_00000300.png")
    (samples[0] / "one_step_00000300.png").write_bytes(b"\x89PNG and nothing more")
    report.main([str(folder)])
    found = np.asarray(Image.open(folder / "samples.png").convert("L"))
    assert (found == 200).sum() > 1000 and not (found == 90).any()
    Image.new("L", (4001, 1)).save(samples[0] / "one_step_00000300.png")
    report.main([str(folder)])  # larger than any grid


def test_the_difference_shows_what_differs_and_the_numbers(folder, capsys):
    pair = [folder / f"weighting={name},seed=1" for name in ("unit", "no_prior")]
    before = sorted(folder.rglob("*"))
    report.main([*map(str, pair), "--diff"])
    assert sorted(folder.rglob("*")) == before
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    rows = {row[0]: row[1:] for row in lines}
    assert rows[""] == [path.name for path in pair] and rows["status"] == ["done", "done"]
    assert rows["weighting._target_"] == ["weighting=unit", "weighting=no_prior"]
    assert rows["one_step FD"] == ["11", "21.1"] and "trainer.batch_size" not in rows
    with pytest.raises(SystemExit):
        report.main([str(pair[0]), "--diff"])
    assert "one run alone; name two or more" in capsys.readouterr().err


def test_without_pictures_there_is_no_sheet(folder):
    report.main([str(folder)])
    assert not (folder / "samples.png").exists()


@pytest.mark.parametrize("settings", [1, 12])
def test_a_chart_has_every_line_in_its_own_look(settings):
    lines = [curves.Line(str(k), k, [1, 2], [[1, 2], [2, 4 + k]]) for k in range(settings)]
    svg = charts.drawn([curves.Chart("t", "x", lines)])
    strokes = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none; (.*?)"/>', svg)
    looks = [stroke for stroke in strokes if any(colour in stroke for colour in charts.COLOURS)]
    assert (
        len(set(looks)) == settings and len({charts.look(k) for k in range(settings)}) == settings
    )


def test_numbers_are_readable_and_keep_their_digits():
    def said(mean, half):
        return tables.number(compare.Cell(mean, half, 0, False, None))

    assert said(74.623, 151.0) == "74.62 ± 150"
    assert said(123456.0, 0.0123) == "123500 ± 0.012"
    assert said(0.00001234, 2e-7) == "1.234e-05 ± 2e-07"


def test_a_held_out_loss_is_shown_and_crowns_nobody(folder):
    for path in folder.glob("*/metrics.json"):
        record = json.loads(path.read_text())
        record["metrics"] = {"eval/loss": record["metrics"]["final/one_step/frechet_distance"]}
        path.write_text(json.dumps(record))
    result = compare.compared(read.found([folder]))
    assert result.columns == ("eval/loss",)
    assert not any(cell.best or cell.p is not None for cell in result.cells.values())
    assert result.cells["weighting=unit", "eval/loss"].mean == 11


def test_runs_that_are_not_done_do_not_choose_the_columns(folder):
    for seed in range(3, 12):
        path = a_run(folder, f"weighting=unit,seed={seed}", seed, 5, status="stopped")
        record = json.loads((path / "metrics.json").read_text())
        record["metrics"] = {"quality/one_step/frechet_distance": 5.0}
        (path / "metrics.json").write_text(json.dumps(record))
    result = compare.compared(read.found([folder]))
    assert result.columns[0] == "final/one_step/frechet_distance"
    assert tables.head("quality/one_step/frechet_distance") == "one_step FD, while training"


def test_a_finished_run_without_a_finite_number_is_counted_and_never_crowned(folder):
    for seed in (1, 2):
        path = folder / f"weighting=unit,seed={seed}" / "metrics.json"
        record = json.loads(path.read_text())
        record["metrics"]["final/one_step/frechet_distance"] = None  # as JSON has what diverged
        path.write_text(json.dumps(record))
    result = compare.compared(read.found([folder]))
    assert result.cells["weighting=no_prior", result.columns[0]].best
    assert tables.number(result.cells["weighting=unit", result.columns[0]]) == "10 (2 without)"


@pytest.mark.parametrize(
    "more, word",
    [
        ({"git_commit": "b"}, "commits: abc, b"),
        ({"quality": {"data_sha256": "b"}}, "data: a, b"),
        ({"quality": {"final_images": "b"}}, "numbers of images at the end: a, b"),
    ],
)
def test_what_makes_runs_incomparable_is_named(folder, more, word):
    same = {"quality": {"data_sha256": "a", "final_images": "a"}}
    a_run(folder, "weighting=inv_sigma,seed=0", 0, 12, **same)
    assert compare.doubts(read.found([folder])) == []
    a_run(folder, "weighting=inv_sigma,seed=1", 1, 12, **{**same, **more})
    said = f"These runs are of different {word}."
    assert compare.doubts(read.found([folder])) == [said]


def test_of_two_runs_of_one_setting_and_seed_it_is_said_which_counts(folder):
    a_run(folder, "weighting=unit,seed=0,again", 0, 40)
    runs = read.found([folder])
    (said,) = compare.doubts(runs)
    assert said.startswith("2 runs of weighting=unit have the seed 0: the last of them,")
    assert said.endswith(" weighting=unit,seed=0,again, counts.")
    (unit,) = [s for s in read.settings(runs) if s.label == "weighting=unit"]
    assert unit.values("final/one_step/frechet_distance")[0] == 40


def test_several_folders_want_a_place_for_their_report(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        report.main([str(path) for path in sorted(folder.glob("weighting=*"))])
    assert ended.value.code == 2 and "--out FOLDER" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_many_runs_make_a_small_page(tmp_path):
    for k in range(500):
        a_run(tmp_path, f"weighting=w{k // 5},seed={k}", k % 5, 10 + k)
    report.write([tmp_path], tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 501


def test_no_runs_are_a_mistake(tmp_path, capsys):
    with pytest.raises(UserError, match="no run, and no folder of runs"):
        read.found([tmp_path])
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path)])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_short_numbers():
    values = (1000, 999.4, 12500, 0.03125, 2.5e6, 0, -1e20)
    said = ["1k", "999", "12.5k", "0.0312", "2.5M", "0", "-1e+20"]
    assert [charts.short(value) for value in values] == said


@pytest.mark.parametrize("values", [[0.0], [1e-90, 1e90], [-1e99, 1e99], [5e-324, 1.0]])
def test_whatever_is_finite_can_be_drawn(values):
    note = "\0\ud800\n$\\" + 1000 * "n"
    line = curves.Line("x", 0, range(1, len(values) + 1), [[value] for value in values], note)
    said = words(charts.drawn([curves.Chart("t", "x", [line], points=True)]))
    assert "???$\\" + 95 * "n" in said
    assert charts.drawn([]) == ""
