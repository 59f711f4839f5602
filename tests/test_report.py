"""Reports from folders as runs leave them: finished, running, failed, cut short, badly named."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import yaml
from runs import QUICK, TINY, built_of, small_quality, swept, trained_of

from scm import board, build, compare, page, report, runs, stats, svg, tags
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


def test_labels_are_short_where_that_is_unambiguous(tmp_path):
    for k, keys in enumerate((("a.x", "objective/tangent"), ("b.x", "objective/tangent"))):
        path = a_run(tmp_path, f"run{k}", 0, 10)
        texts = [f"{key}={k}.123456" for key in keys]
        (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(texts))
    labels = [setting.label for setting in runs.settings(runs.found([tmp_path]))]
    assert labels == ["a.x=0.1235, tangent=0.1235", "b.x=1.123, tangent=1.123"]


def test_the_best_is_marked_by_the_metrics_direction_and_tested_by_seed(folder):
    result = compare.compared(runs.found([folder]))
    assert tags.direction("final/x/recall") == 1 and tags.direction("eval/loss") == -1
    assert tags.direction("final/x/memorisation") == 0
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
    (calls,) = compare.over_calls(unit, 0, compare.columns(unit.runs))
    assert (calls.x, calls.y) == ([1, 2], [11.0, 5.5])


def test_each_kind_of_sampler_has_its_line_against_calls(tmp_path):
    path = a_run(tmp_path, "weighting=unit,seed=0", 0, 10)
    a_run(tmp_path, "weighting=no_prior,seed=0", 0, 12)
    calls = {"heun_3": 3, "heun_5": 5, "heun_9": 9, "ddim_5": 5, "ddim_10": 10}
    config = yaml.safe_load((path / ".hydra" / "config.yaml").read_text())
    kinds = {name: f"scm.samplers.{name.partition('_')[0].title()}" for name in calls}
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
    heun, ddim = compare.over_calls(unit, 0, result.columns)
    assert (heun.note, heun.x, heun.y) == ("Heun", [3, 5, 9], [30, 18, 10])
    assert (ddim.note, ddim.x, ddim.y) == ("Ddim", [5, 10], [18, 9])
    assert [line.note for line in compare.over_calls(one_kind, 1, result.columns)] == [""]
    page = (tmp_path / "report.html").read_text()
    figure = page.partition("<figcaption>FD against network calls")[2].partition("</figure>")[0]
    assert figure.count("<circle") == 3 + 2 + 2 and ">Heun</text>" in figure


@pytest.mark.slow
def test_a_small_sampler_steps_sweep_shows_quality_against_calls(tmp_path, monkeypatch):
    real = small_quality(tmp_path / "cache", train=300, test=100)
    monkeypatch.setattr(build, "quality", lambda *_: real)
    small = (*QUICK, *TINY["unet_small"], "trainer.budget.steps=2")
    for seed in (0, 1):
        config = swept(
            *("sampler_steps", "sampler_steps=sct", f"seed={seed}", *small),
            "trainer.final_quality_images=20",
        )
        trained_of(built_of(config, tmp_path / "sweep" / f"seed={seed}"))
    result = report.write([tmp_path / "sweep"], tmp_path)
    (setting,) = result.settings
    (line,) = compare.over_calls(setting, 0, result.columns)
    assert line.x == [1, 2, 3, 4] and all(
        low <= y <= high for low, y, high in zip(line.low, line.y, line.high, strict=True)
    )
    page = (tmp_path / "report.html").read_text()
    figure = page.partition("<figcaption>FD against network calls")[2].partition("</figure>")[0]
    assert figure.count("<circle") == 4


def test_running_failed_and_broken_runs_are_shown_and_not_counted(folder):
    a_run(folder, "weighting=unit,seed=3", 3, 1000, status="running")
    a_run(folder, "weighting=unit,seed=4", 4, 1000, status="failed", traceback="a\nValueError: b")
    (folder / "weighting=unit,seed=0" / "metrics.json").write_text('{"status": "do')
    (folder / "begun" / ".hydra").mkdir(parents=True)
    (folder / "begun" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    result = report.write([folder], folder)
    cell = result.cells["weighting=unit", "final/one_step/frechet_distance"]
    assert cell.interval.mean == 11.5 and cell.interval.n == 2
    assert cell.missing == 1 and not cell.best  # the failed one: the others may be the lucky ones
    assert result.cells["weighting=no_prior", "final/one_step/frechet_distance"].best
    text = (folder / "summary.md").read_text()
    assert "1 unreadable, 2 done, 1 running, 1 failed" in text and "ValueError: b" in text
    assert not report.report_sweep(folder)
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and {row["status"] for row in rows} >= {"new", "unreadable", "failed"}


def test_tensorboard_is_told_of_charts_that_have_lines():
    tags = {"quality/one_step/recall", "quality/two_step/mean", "eval/loss"}
    charts = board.layout(["one_step", "two_step"], tags)
    assert list(charts) == ["one_step", "tangent"] and list(charts["one_step"]) == ["recall"]
    assert "toy" in board.layout([], {"eval/toy/one_step_rms"})


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
    code = [line for line in lines if evil in line]  # indented by four: as it stands, not as HTML
    assert code and all(line.startswith("    ") for line in code)


def test_the_picture_stands_alone_with_every_setting_and_both_charts(folder):
    a_run(folder, "weighting=<b>&,seed=0", 0, 15)
    report.main([str(folder)])
    text = (folder / "summary.svg").read_text()
    root = ElementTree.fromstring(text)  # well-formed, whatever the names
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"weighting=unit", "weighting=no_prior", "weighting=<b>&"} <= set(words)
    assert {"one_step FD, while training", "tangent norm (RMS of g)"} <= set(words)
    assert "](summary.svg)" in (folder / "summary.md").read_text()
    assert text.count("<svg") == 3 and "--c0" in text and "href" not in text


def test_numbers_are_readable_and_keep_their_digits():
    def cell(mean, half):
        return compare.Cell(stats.Interval(mean, half, 3), 0, False, None, False)

    assert page.number(cell(74.623, 151.0)) == "74.62 ± 150"
    assert page.number(cell(123456.0, 0.0123)) == "123500 ± 0.012"
    assert page.number(cell(0.00001234, 2e-7)) == "1.234e-05 ± 2e-07"


def test_a_held_out_loss_is_shown_and_crowns_nobody(folder):
    for path in folder.glob("*/metrics.json"):
        record = json.loads(path.read_text())
        record["metrics"] = {"eval/loss": record["metrics"]["final/one_step/frechet_distance"]}
        path.write_text(json.dumps(record))
    result = compare.compared(runs.found([folder]))
    assert result.columns == ("eval/loss",)
    assert not any(cell.best or cell.p is not None for cell in result.cells.values())
    assert result.cells["weighting=unit", "eval/loss"].interval.mean == 11


def test_runs_that_are_not_done_do_not_choose_the_columns(folder):
    for seed in range(3, 12):
        path = a_run(folder, f"weighting=unit,seed={seed}", seed, 5, status="stopped")
        record = json.loads((path / "metrics.json").read_text())
        record["metrics"] = {"quality/one_step/frechet_distance": 5.0}
        (path / "metrics.json").write_text(json.dumps(record))
    result = compare.compared(runs.found([folder]))
    assert result.columns[0] == "final/one_step/frechet_distance"
    assert page.head("quality/one_step/frechet_distance") == "one_step FD, while training"


def test_a_finished_run_without_a_finite_number_is_counted_and_never_crowned(folder):
    for seed in (1, 2):
        path = folder / f"weighting=unit,seed={seed}" / "metrics.json"
        record = json.loads(path.read_text())
        record["metrics"]["final/one_step/frechet_distance"] = None  # as JSON has what diverged
        path.write_text(json.dumps(record))
    result = report.write([folder], folder)
    assert result.cells["weighting=no_prior", "final/one_step/frechet_distance"].best
    assert "10 (2 without)" in (folder / "summary.md").read_text()
    assert "(2 without)" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "what, word", [("data_sha256", "data"), ("final_images", "numbers of images at the end")]
)
def test_what_makes_distances_incomparable_is_named(folder, what, word):
    a_run(folder, "weighting=inv_sigma,seed=0", 0, 12, quality={what: "b"})
    a_run(folder, "weighting=inv_sigma,seed=1", 1, 12, quality={what: "a"})
    report.main([str(folder)])
    said = f"These runs are of different {word}: a, b."
    assert said in (folder / "summary.md").read_text()


def test_different_commits_are_named(folder):
    a_run(folder, "weighting=inv_sigma,seed=0", 0, 12, git_commit="def")
    report.main([str(folder), "--out", str(folder / "out")])
    said = "These runs are of different commits: abc, def."
    assert said in (folder / "out" / "summary.md").read_text()
    assert said in (folder / "out" / "report.html").read_text()


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


def test_short_numbers():
    values = (1000, 999.4, 12345, 0.03125, 2.5e6, 0)
    assert [svg.short(value) for value in values] == ["1000", "999", "12.3k", "0.0312", "2.5M", "0"]


def test_a_constant_and_a_single_point_can_be_drawn():
    line = svg.Series("x", 0, [1.0], [0.0], [0.0], [0.0])
    assert "<circle" in svg.chart([line], title="t", xlabel="x", log_y=True)
    assert svg.chart([svg.Series("x", 0, [], [], [], [])], title="t", xlabel="x") == ""
