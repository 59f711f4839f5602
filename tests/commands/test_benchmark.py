"""The benchmark's command on tiny networks, its FLOPs, and the seed's form of the tangent."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import DIGITS, TINY

from benchmark import (
    attention,
    cases,
    exponents,
    growth,
    memory,
    neighbour,
    process,
    reference,
    report,
    timing,
)
from benchmark import runs as sweep_runs
from benchmark.__main__ import main
from benchmark.cases import FORMS, MATCHED, METHODS, STEPS
from benchmark.suites import doublings
from benchmark.timing import Case, Label, Timing, Work, count_flops, measure
from scm.commands import report as sweep_report
from scm.config import compose as composing
from scm.method import dual
from scm.storage import model as models

CPU = torch.device("cpu")
LABEL = Label("unet_small", "fp32", 4, "diffusion")
OVERRIDES = [*TINY["unet_small"][1:], "model.embedding_width=8", "trainer.threads=1"]
SMALL = ["--models", "unet_small", "--batch-sizes", "4", "--precisions", "fp32", "--device", "cpu"]


@pytest.fixture
def small_reference(monkeypatch):
    """Reference shapes that take no time."""
    monkeypatch.setattr(reference, "SIDE", {"cpu": 16})
    monkeypatch.setattr(reference, "BATCH", {"cpu": 2})
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e-12)


def command(capsys, tmp_path, *arguments, rounds=2):
    """The table's lines and the JSON of one command."""
    out = tmp_path / "out.json"
    command = [*SMALL, "--rounds", str(rounds), "--out", str(out), *arguments]
    main([*command, "--overrides", *OVERRIDES, *DIGITS])
    return capsys.readouterr().out.splitlines(), json.loads(out.read_text())


def by_case(result):
    return {row["case"]: row for row in result["rows"]}


def check_timed(lines, result, rounds=2):
    """Every row stands in the table, and its numbers follow from its samples."""
    rows = result["rows"]
    assert len(lines) == 2 + len(rows) + 2 and lines[0].startswith("| model |")
    for row, line in zip(rows, lines[2:], strict=False):
        assert row["case"] in line and row["error"] == ""
        seconds = row["seconds"]
        assert len(seconds["samples"]) == rounds and min(seconds["samples"]) > 0
        assert seconds["q1"] <= seconds["median"] <= seconds["q3"]
        if row["images"]:
            assert row["images_per_second"] == pytest.approx(row["images"] / seconds["median"])


@pytest.mark.slow
def test_step_suite_has_every_case_with_ratios_and_fractions(capsys, tmp_path, small_reference):
    lines, result = command(capsys, tmp_path, rounds=1)
    check_timed(lines, result, rounds=1)
    rows = by_case(result)
    assert {"forward", *STEPS} < set(rows) and lines[-1].startswith("cpu: ")
    diffusion = rows["diffusion"]
    for case in ("forward", *STEPS):
        ratio = rows[case]["seconds"]["median"] / diffusion["seconds"]["median"]
        assert rows[case]["ratio"]["median"] == pytest.approx(ratio)  # one round: the same thing
    peaks = [row["flops_per_second"] for case, row in rows.items() if "convolution" in case]
    fraction = rows["forward"]["flops_per_second"] / max(peaks)
    assert rows["forward"]["fraction_of_peak"] == pytest.approx(fraction)
    assert torch.__version__.startswith(result["machine"]["versions"]["torch"])
    flops = {case: rows[case]["flops"] / rows["forward"]["flops"] for case in STEPS}
    # value forward and backward; one pass more for the tangent; one more for the teacher
    assert flops["diffusion"] == pytest.approx(3, abs=0.1)
    assert flops["sct dual"] == pytest.approx(4, abs=0.1)
    assert flops["scd dual"] == pytest.approx(5, abs=0.1)
    assert flops["sct split"] > flops["sct dual"] and flops["sct naive"] >= flops["sct dual"]


@pytest.mark.slow
def test_methods_suite_counts_the_passes_of_every_method(capsys, tmp_path, small_reference):
    """Diffusion 3; a JVP in one pass 4; a teacher or a second point 1 more each."""
    lines, result = command(capsys, tmp_path, "--suite", "methods", rounds=1)
    check_timed(lines, result, rounds=1)
    passes = {case: row["passes"] for case, row in by_case(result).items()}
    assert (
        set(passes)
        == set(METHODS)
        == {path.stem for path in (composing.CONF / "objective").glob("*.yaml")} | {MATCHED}
    )
    expected = {"sct": 4, "scd": 5, "ect": 4, "discrete_cd": 5, "improved_meanflow": 5, "lmd": 5}
    expected |= {"lsd": 5, "psd": 5, "meanflow": 4, "alpha_flow": 4}
    # beside scd: samples, half of them by two calls, and two judges; samples and a score step
    expected |= {MATCHED: 5 + (0.5 + 3 + 2) + (1.5 + 3)}
    assert {case: passes[case] for case in expected} == pytest.approx(expected, rel=0.06)


def test_seed_suite_names_the_speedup_over_the_seeds_step(capsys, tmp_path, small_reference):
    out = tmp_path / "out.json"
    small = [*SMALL, "--batch-sizes", "1", "--rounds", "2", "--overrides", *DIGITS]
    main(["--suite", "seed", *small, "--out", str(out)])
    lines, result = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    rows = {(row["model"], row["case"]): row for row in result["rows"]}
    seed, ours = rows["unet_mobile", "sct naive"], rows["unet_small", "sct dual"]
    assert seed["speedup"]["median"] == 1
    pairs = zip(seed["seconds"]["samples"], ours["seconds"]["samples"], strict=True)
    speedups = sorted(its / mine for its, mine in pairs)
    assert speedups[0] <= ours["speedup"]["median"] <= speedups[-1]
    assert "times the starting scripts'" in lines[0]


def test_data_suite_compares_a_batch_with_the_step(capsys, tmp_path, small_reference):
    lines, result = command(capsys, tmp_path, "--suite", "data")
    check_timed(lines, result)
    rows = by_case(result)
    assert set(rows) == {"batch", "batch, noise, times", "diffusion"}
    assert rows["batch"]["ratio"]["median"] < 1


def test_sampling_suite_draws_n_images(capsys, tmp_path, small_reference):
    lines, result = command(capsys, tmp_path, "--suite", "sampling", "-n", "10")
    check_timed(lines, result)
    assert {case: row["images"] for case, row in by_case(result).items()} == {
        "one_step, 10 images": 10,
        "heun, 1 images": 1,
    }


def test_report_suite_reports_n_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e-12)
    written = []
    monkeypatch.setattr(cases.report, "write", lambda folders, out: written.append(folders))
    lines, result = command(capsys, tmp_path, "--suite", "report", "-n", "7", rounds=1)
    (row,) = result["rows"]
    assert row["case"] == "report of 7 runs" and row["error"] == "" and written
    assert lines[0] == "| case | median | quartiles |" and "report of 7 runs" in lines[2]
    assert len(row["seconds"]["samples"]) == 1 and lines[-1].startswith("cpu: ")


def test_runs_that_never_were_are_read_as_real_ones(tmp_path):
    sweep_runs.write_sweep(tmp_path, 7, composing.composed([]))
    result = sweep_report.write([tmp_path], tmp_path / "out")
    assert [len(setting.runs) for setting in result.settings] == [5, 2]
    assert [run.status for run in result.runs] == ["done"] * 7 and len(result.columns) == 6
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("image/svg+xml") == 6 and page.count("image/png") == 4


@pytest.mark.slow
def test_scaling_suite_grows_one_thing_after_the_other(
    capsys, tmp_path, small_reference, commands, monkeypatch
):
    monkeypatch.setattr(process.subprocess, "run", lambda command, **_: commands(*command[1:]))
    values = {growth.BATCH: (2, 4), growth.WIDTH: (8, 16), growth.SIDE: (28, 32)}
    values[growth.IMAGES] = (600, 60_000)
    for grows, two in values.items():
        monkeypatch.setitem(growth.AXES, grows, replace(growth.AXES[grows], values=two))
    lines, result = command(capsys, tmp_path, "--suite", "scaling", rounds=1)
    points = [row for row in result["rows"] if row["grows"]]
    assert [(row["grows"], row["at"], row["case"]) for row in points] == [
        *((grows, at, growth.STEP) for grows in list(values)[:3] for at in values[grows]),
        *((growth.IMAGES, at, c) for c in (growth.DRAW, growth.ORDER) for at in (600, 60_000)),
    ]
    assert [row["batch_size"] for row in points] == [2, 4, *([4] * 8)]
    held = {(row["case"], row["at"]): row.get("above_bytes") for row in points}
    assert held[growth.DRAW, 60_000] > 60_000 * 28 * 28 and held[growth.ORDER, 600] is None
    found = {row["case"]: row for row in result["rows"] if "exponent" in row}
    assert {f"{growth.STEP}: time over {grows}" for grows in list(values)[:3]} < set(found)
    row = found[f"{growth.ORDER}: time over {growth.IMAGES}"]
    few, many = (point["seconds"]["median"] for point in points[-2:])
    assert row["exponent"]["median"] == pytest.approx(math.log(many / few) / math.log(100))
    assert row["expected"] == "1" and f"{row['exponent']['median']:.2f}" in "".join(lines)
    threads = [row for row in result["rows"] if row["threads"]]
    assert [(row["threads"], row["case"]) for row in threads] == [(1, growth.STEP)]


def test_an_exponent_is_that_of_the_power_law_in_every_round():
    """y = c x^1.5, each round of its own c: the exponent has no spread, and the line no bend."""
    x = [1, 2, 4]
    rows = [
        {
            **{"model": "m", "precision": "fp32", "case": "step", "grows": growth.BATCH, "at": at},
            **{"error": "", "seconds": {"samples": [at**1.5, 7 * at**1.5]}},
            "above_bytes": at**2 + at,
        }
        for at in x
    ]
    time, memory = exponents.exponent_rows(rows)
    assert time["case"] == "step: time over batch" and time["expected"] == "1"
    assert list(time["exponent"].values()) == pytest.approx([1.5] * 3)
    assert time["last"]["median"] == pytest.approx(1.5) and time["bend"] == pytest.approx(0)
    assert memory["last"]["median"] == pytest.approx(math.log2(20 / 6)) and memory["bend"] > 0.01
    # numpy's own covariance of a line through 0, 1, 2 and the logarithms
    logs = [math.log2(at**2 + at) for at in x]
    line, covariance = np.polyfit([0, 1, 2], logs, 1, cov=True)
    assert memory["exponent"]["median"] == pytest.approx(line[0])
    assert memory["bend"] == pytest.approx(covariance[0, 0] ** 0.5)
    assert not exponents.exponent_rows([{**rows[0], "error": "no memory"}, *rows[1:]])


def test_images_of_a_side_are_read_as_real_ones_are(tmp_path):
    label = Label("unet_small", "fp32", 4, growth.STEP, grows=growth.SIDE, at=32)
    config = composing.composed(growth.overrides(label, tmp_path))
    data = models.dataset(config.data)
    assert data.train.shape == (growth.WRITTEN, 1, 32, 32)
    assert data.measured_sigma_data() == pytest.approx(0.5)
    assert len(data.train.unique()) == 2


def test_a_batch_of_another_epoch_is_the_first_of_it(monkeypatch):
    asked = []
    monkeypatch.setattr(
        growth, "dataset", lambda n: SimpleNamespace(batch=lambda *given: asked.append(given[1]))
    )
    shop = cases.Workshop("cpu", [], None)
    for case in (growth.DRAW, growth.ORDER):
        work = shop.random_batch(replace(LABEL, case=case, grows=growth.IMAGES, at=600))
        work.call(), work.call(), work.call()
    assert asked == [0, 1, 2, 0, 151, 302]  # 150 batches of 4 are an epoch


def test_memory_suite_measures_every_step_in_its_own_process(
    capsys, tmp_path, commands, monkeypatch
):
    monkeypatch.setattr(process.subprocess, "run", lambda command, **_: commands(*command[1:]))
    arguments = ("--suite", "memory", "--tangents", "dual", "--batch-sizes", "16")
    lines, result = command(capsys, tmp_path, *arguments)
    rows = by_case(result)
    assert set(rows) == {"diffusion", "sct dual", "scd dual"} and len(lines) == 2 + 3 + 2
    for case, row in rows.items():
        assert row["error"] == "" and case in "".join(lines)
        assert 1e8 < row["base_bytes"] < row["peak_bytes"] < 5e9
        assert row["above_bytes"] == row["peak_bytes"] - row["base_bytes"]
        ratio = row["peak_bytes"] / rows["diffusion"]["peak_bytes"]
        assert row["peak_ratio"] == pytest.approx(ratio)


@pytest.mark.slow
def test_neighbour_suite_times_each_wait_alone_and_beside_a_busy_process(
    capsys, tmp_path, commands, monkeypatch
):
    seen = []

    def run(command, *, env, **_):
        seen.append(env.get("OMP_WAIT_POLICY"))
        return commands(*command[1:])

    monkeypatch.setattr(process, "subprocess", SimpleNamespace(run=run))
    waits = {"own": {}, "no spin": {"OMP_WAIT_POLICY": "passive"}}
    monkeypatch.setattr(neighbour, "WAITS", waits)
    lines, result = command(capsys, tmp_path, "--suite", "neighbour", rounds=1)
    check_timed(lines, result, rounds=1)
    both = ("alone", "beside a busy process")
    assert [row["case"] for row in result["rows"]] == [f"{w}, {how}" for w in waits for how in both]
    assert seen == [None, None, "passive", "passive"]
    first = result["rows"][0]["seconds"]["median"]
    for row in result["rows"]:
        assert row["share"]["median"] == pytest.approx(first / row["seconds"]["median"])


@pytest.mark.soak
def test_memory_of_an_impossible_case_is_the_users_mistake():
    """In a process that is not warm, as it is measured."""
    with pytest.raises(ValueError, match="widths"):
        memory.measure(LABEL, device="cpu", overrides=["model.widths=[8]"])


@pytest.mark.slow
def test_compiled_steps_stand_beside_the_eager_ones(capsys, tmp_path, small_reference, monkeypatch):
    """Not those with torch.func.jvp, which torch.compile cannot see through."""
    traced = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda call, **_: traced(call))
    lines, result = command(capsys, tmp_path, "--tangents", "split", "--compile", rounds=1)
    check_timed(lines, result, rounds=1)
    found = [(row["case"], row["compiled"]) for row in result["rows"][5:]]
    eager = [(case, "") for case in ("forward", "diffusion", "sct split")]
    assert found == [*eager, ("diffusion", "default")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0"),
        (["--suite", "report", "-n", "0"], "-n 0"),
        (["--batch-sizes", "0"], "--batch-sizes 0"),
        (["--out", "no/such/folder/a.json"], "no folder"),
        (["--suite", "data", "--compile"], "--suite step"),
        (["--overrides", "trainer.foo=1"], "trainer.foo"),
        (["--models", "unet", "--overrides", "data=bimodal"], "images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, small_reference):
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu", *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_ratio_is_the_median_of_the_rounds_ratios():
    """A slow round hits both: the ratio of medians would be 2 / 1, every round says 3."""
    base = Timing(LABEL, seconds=[1.0, 1.0, 10.0])
    mine = Timing(replace(LABEL, case="sct dual"), seconds=[3.0, 2.0, 30.0])
    row = report.timed_rows([base, mine])[1]
    assert row["ratio"]["median"] == pytest.approx(3.0)
    assert row["seconds"]["median"] == pytest.approx(3.0)
    other = Timing(replace(LABEL, case="sct dual", batch_size=8), seconds=[1.0, 1.0, 1.0])
    assert "ratio" not in report.timed_rows([base, other])[1]


def test_cases_are_timed_in_turn_and_a_failing_one_is_a_row(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e-12)
    order = []

    def fails():
        raise RuntimeError("no rule\nfor this")

    cases = [
        Case(replace(LABEL, case="a"), lambda: Work(lambda: order.append("a"))),
        Case(replace(LABEL, case="b"), lambda: Work(lambda: order.append("b"))),
        Case(replace(LABEL, case="bad"), lambda: Work(fails)),
    ]
    timings = measure(cases, rounds=2, device=CPU)
    assert "".join(order).endswith("aabb" * 2)  # per round: an untimed call, then the timed one
    assert [len(t.seconds) for t in timings] == [2, 2, 0]
    assert timings[2].error == "RuntimeError: no rule"
    table = report.markdown(report.timed_rows(timings))
    assert "RuntimeError: no rule" in table


def test_too_large_an_allocation_raises():
    with timing.memory_limit(CPU), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("groups", [1, 4])
def test_flops_of_a_convolution_and_of_its_gradients(groups):
    """2 B C_out C_in / groups k^2 H W forward, the same for each of the two gradients."""
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    weight = torch.randn(12, 8 // groups, 3, 3, requires_grad=True)
    forward = 2 * 2 * 12 * (8 // groups) * 9 * 25

    def step():
        F.conv2d(x, weight, padding=1, groups=groups).sum().backward()

    assert count_flops(lambda: F.conv2d(x, weight, padding=1, groups=groups)) == forward
    assert count_flops(step) == 3 * forward


def test_flops_of_fused_attention_and_of_its_gradients():
    """2 products of 2 B H L^2 d forward; 5 backward, the first of them anew."""
    q, k, v = torch.randn(3, 2, 3, 11, 4, requires_grad=True)
    product = 2 * 2 * 3 * 11 * 11 * 4
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    step = lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()  # noqa: E731
    assert count_flops(step) == 7 * product


def test_attention_suite_sets_each_way_beside_the_lean_one(
    capsys, tmp_path, commands, monkeypatch, small_reference
):
    """Times by round, memory of a process of each length, errors against float64."""
    monkeypatch.setattr(process.subprocess, "run", lambda command, **_: commands(*command[1:]))
    monkeypatch.setattr(attention, "BATCHES", {7: 3, 300: 2})
    lines, result = command(capsys, tmp_path, "--suite", "attention")
    rows = result["rows"]
    assert [(row["tokens"], row["case"]) for row in rows] == [
        (tokens, way) for tokens in (7, 300) for way in attention.WAYS
    ]
    for row, line in zip(rows, lines[2:], strict=False):
        assert row["case"] in line and row["error"] == "" and row["tangent_error"] < 1e-5
        lean = next(r for r in rows if (r["tokens"], r["case"]) == (row["tokens"], "lean"))
        for passes in attention.PASSES:
            mine, its = (r[f"{passes}_seconds"]["samples"] for r in (row, lean))
            ratios = [a / b for a, b in zip(mine, its, strict=True)]
            assert min(ratios) <= row[f"{passes}_ratio"]["median"] <= max(ratios)
            ratio = row[f"{passes}_bytes"] / max(1, lean[f"{passes}_bytes"])
            assert row[f"{passes}_bytes_ratio"] == pytest.approx(ratio)


def test_every_way_of_attention_gives_the_same_value_tangent_and_gradient():
    q, k, v, *tangents = torch.randn(6, 2, 2, 9, 4).double()
    primals = tuple(x.requires_grad_() for x in (q, k, v))

    def result(way):
        jvp, attend = attention.WAYS[way]
        y, dy = jvp(attend, primals, tuple(tangents))
        return y, dy.detach(), *torch.autograd.grad(y, primals, tangents[0])

    for way in attention.WAYS:
        for mine, its in zip(result(way), result("lean"), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


def test_attentions_memory_is_the_peak_of_one_call_and_what_fails_says_why():
    """Written out under torch.func.jvp it holds several matrices of all by all, lean none."""
    labels = {way: Label("", "fp32", 1, way, tokens=1500) for way in attention.WAYS}
    matrix = attention.HEADS * 1500 * 1500 * 4
    found = {way: attention.call(label, "forward", CPU) for way, label in labels.items()}
    assert found["lean"].above < matrix < found["written out, torch.func.jvp"].above / 2
    huge = replace(labels["lean"], batch_size=2**40)
    assert "allocate" in attention.call(huge, "forward", CPU).error


def test_reference_convolution_counts_as_its_formula(small_reference):
    case = list(reference.cases(reference.Precision.fp32, CPU))[1]
    (channels, size), batch = reference.CONVOLUTIONS[0], 2
    assert count_flops(case.build().call) == 18 * batch * channels**2 * size**2


@pytest.mark.parametrize("form", ["split", "naive"])
def test_every_form_gives_the_dual_passs_value_tangent_and_gradient(form):
    weight = torch.randn(3, 3, 3, 3).double().requires_grad_()
    x, dx = torch.randn(2, 2, 3, 4, 4).double()
    t, dt = torch.rand(2, 2).double()

    def net(x, t):
        h = F.conv2d(x, weight, padding=1) + t.view(-1, 1, 1, 1).sin()
        return F.conv2d(F.silu(h), weight, padding=1), t * weight.sum()

    def result(jvp):
        (F_, w), (dF, dw) = jvp(net, (x, t), (dx, dt))
        (gradient,) = torch.autograd.grad(F_.square().mean() + w.mean(), weight)
        return F_, w, dF.detach(), dw.detach(), gradient

    for mine, its in zip(result(FORMS[form]), result(dual.jvp), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


def test_naive_records_the_tangent_and_dual_does_not():
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    x, dx = torch.randn(2, 1, 2, 4, 4)
    recorded = {
        form: jvp(lambda x: F.conv2d(x, weight).square(), (x,), (dx,))[1].requires_grad
        for form, jvp in FORMS.items()
    }
    assert recorded == {"dual": False, "split": False, "naive": True}


def test_doublings_end_at_all_threads():
    assert [doublings(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
