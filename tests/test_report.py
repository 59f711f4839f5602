"""Reports from folders as runs leave them: finished, running, failed, cut short, badly named."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from scm import compare, report, runs, svg
from scm.errors import UserError

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
        {"step": 1, "perf/seconds": 60.0, "tangent/rms": 4.0},
        {"step": 2, "perf/seconds": 120.0, "tangent/rms": 2.0},
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
    found = runs.settings(runs.found([folder]))
    assert {s.label: len(s.runs) for s in found} == {"weighting=unit": 3, "weighting=no_prior": 3}
    assert found[0].values("final/one_step/recall").keys() == {0, 1, 2}


def test_the_best_is_marked_by_the_metrics_direction_and_tested_by_seed(folder):
    result = compare.compared(runs.found([folder]))
    assert compare.direction("final/x/recall") == 1 and compare.direction("eval/loss") == -1
    assert compare.direction("final/x/memorisation") == 0
    for tag in result.columns:  # unit has the lower distances, and 1 / distance as its recall
        best, other = (result.cells[f"weighting={w}", tag] for w in ("unit", "no_prior"))
        assert best.best and not other.best and best.p is None
        assert other.paired and other.p < 0.01
    cell = result.cells["weighting=unit", "final/one_step/frechet_distance"]
    assert cell.interval.mean == 11 and cell.interval.half == pytest.approx(2.4841, abs=1e-3)


def test_curves_are_over_images_and_minutes_with_the_seeds_range(folder):
    (unit,) = [s for s in runs.settings(runs.found([folder])) if s.label == "weighting=unit"]
    tag = "quality/one_step/frechet_distance"
    line = compare.curve(unit, 0, tag, compare.over_images)
    assert (line.x, line.y, line.low, line.high) == ([20.0], [11.0], [10], [12])
    assert compare.curve(unit, 0, tag, compare.over_minutes).x == [2.0]
    calls = compare.over_calls(unit, 0, compare.columns(unit.runs))
    assert (calls.x, calls.y) == ([1, 2], [11.0, 5.5])


def test_running_failed_and_broken_runs_are_shown_and_not_counted(folder):
    a_run(folder, "weighting=unit,seed=3", 3, 1000, status="running")
    a_run(folder, "weighting=unit,seed=4", 4, 1000, status="failed", traceback="a\nValueError: b")
    (folder / "weighting=unit,seed=0" / "metrics.json").write_text('{"status": "do')
    (folder / "begun" / ".hydra").mkdir(parents=True)
    (folder / "begun" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    result = report.write([folder], folder)
    cell = result.cells["weighting=unit", "final/one_step/frechet_distance"]
    assert cell.interval.mean == 11.5 and cell.interval.n == 2
    text = (folder / "summary.md").read_text()
    assert "1 unreadable, 2 done, 1 running, 1 failed" in text and "ValueError: b" in text
    assert not report.report_sweep(folder)
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and {row["status"] for row in rows} >= {"new", "unreadable", "failed"}


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


def test_the_page_stands_alone_and_escapes_every_name(folder):
    evil = "<script>alert(1)</script>"
    bad = a_run(folder, "weighting=evil,seed=0", 0, 15, status="failed", traceback=evil)
    (bad / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"weighting={evil}"]))
    (bad / ".hydra" / "command.txt").write_text(f"python run.py {evil}")
    record = {"question": f"Is {evil} so?", "name": "x", "command": evil}
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "weighting=unit,seed=0" / "samples").mkdir()
    picture = folder / "weighting=unit,seed=0" / "samples" / "one_step_00000002.png"
    picture.write_bytes(b"\x89PNG")
    report.main([str(folder)])
    text = (folder / "report.html").read_text()
    page = Tags()
    page.feed(text)
    assert "script" not in page.opened and page.text.count(evil) >= 4
    assert page.links == ["data:image/png;base64,iVBORw=="]
    assert page.opened.count("svg") >= 4 and not re.search(r"https?://", text)
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text
    lines = (folder / "summary.md").read_text().splitlines()
    assert [line for line in lines if evil in line] == [f"    {evil}"]  # code


def test_different_commits_are_named(folder):
    a_run(folder, "weighting=inv_sigma,seed=0", 0, 12, git_commit="def")
    report.main([str(folder), "--out", str(folder / "out")])
    said = "These runs are of different commits: abc, def."
    assert said in (folder / "out" / "summary.md").read_text()
    assert said in (folder / "out" / "report.html").read_text()


def test_many_runs_make_a_small_page(tmp_path):
    for k in range(500):
        a_run(tmp_path, f"weighting=w{k // 5},seed={k}", k % 5, 10 + k)
    report.write([tmp_path], tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 501


def test_no_runs_are_a_mistake(tmp_path, capsys):
    with pytest.raises(UserError, match="no run, and no folder of runs"):
        runs.found([tmp_path])
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path)])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (3.0, 4e4, True), (2, 3, True)]
)
def test_ticks_lie_inside_and_are_round(low, high, log):
    ticks = svg.Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 16 and all(low <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert all(re.fullmatch(r"[125]0*(\.0*)?|0|[\d.]*", f"{tick:g}") for tick in ticks)


def test_a_constant_and_a_single_point_can_be_drawn():
    line = svg.Series("x", 0, [1.0], [0.0], [0.0], [0.0])
    assert "<circle" in svg.chart([line], title="t", xlabel="x", log_y=True)
    assert svg.chart([svg.Series("x", 0, [], [], [], [])], title="t", xlabel="x") == ""
