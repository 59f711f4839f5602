"""Studies: their space, what is refused, what follows from the seed, what survives a kill."""

import json
import os
import signal
import time

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import QUICK, TINY, built, quick

from scm.commands import callbacks, space, study
from scm.config import compose as composing
from scm.config import metrics
from scm.config.read import plain
from scm.core.errors import UserError
from scm.report import read
from scm.report import study as table
from scm.storage.folder import RunFolder, Status
from scm.training.run import run

TOY = (*QUICK, "data=bimodal", *TINY["mlp"], "optimized_metric=eval/loss")
DIGITS = (*QUICK, *TINY["unet_small"], "trainer.final_quality_images=600")
LR, P_MEAN = "optimizer.lr=tag(log,interval(1e-4,1e-2))", "objective.times.P_mean=interval(-2,0)"
SETTINGS = {"seed": 0, "sampler": "tpe", "n_startup": 2}
SETTINGS |= {"pruner": "median", "pruner_startup": 1, "pruner_warmup": 0}


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="needs .[optuna]")


def plan(*overrides, **settings):
    fixed, ranges = space.fixed_and_ranges({}, overrides or (LR, P_MEAN))
    return study.Plan(ranges, fixed, {**SETTINGS, **settings}, metrics.LOSS)


def finished(folder, trial, value, status="done"):
    """The folder of a trial's run, as it is when it has ended."""
    ended = RunFolder(folder / f"run{trial.number}")
    ended.path.mkdir(exist_ok=True)
    ended.write_metrics({"status": status, "metrics": {metrics.LOSS: value}})
    return ended


def error_of(trial):
    """A bowl: its least value is where P_mean is -1.5."""
    values = dict(override.split("=") for override in trial.overrides)
    return (float(values["objective.times.P_mean"]) + 1.5) ** 2 + 1


def searched(folder, n, given, *, batches=1):
    """The overrides of all trials of a study of n trials, opened anew `batches` times."""
    trials = []
    for k in range(batches):
        with study.opened(folder, given) as current:
            while batch := current.next(n * (k + 1) // batches, 1, retry_failed=False):
                trials += batch
                for trial in batch:
                    current.tell(trial.number, finished(folder, trial, error_of(trial)))
    assert [trial.number for trial in trials] == list(range(n))
    return [tuple(trial.overrides) for trial in trials]


def test_a_space_is_written_as_a_sweep_is():
    params = {"model": "mlp,unet", "seed": 1, "model.blocks": "int(interval(1,4))", "a": "b,c"}
    fixed, ranges = space.fixed_and_ranges(params, [LR, "a=d"])
    assert fixed == ["seed=1", "a=d"]
    assert ranges == {
        "model": space.Choices(("mlp", "unet")),
        "model.blocks": space.Interval(1, 4, log=False),
        "optimizer.lr": space.Interval(1e-4, 1e-2, log=True),
    }
    assert str(ranges["optimizer.lr"]) == "tag(log, interval(0.0001, 0.01))"
    assert ranges["model.blocks"].ends == (1, 4) and ranges["model"].ends == ("mlp", "unet")


def test_proposals_keep_to_the_space(optuna):
    _, ranges = space.fixed_and_ranges({}, [LR, "model.blocks=int(interval(1,4))", "w=a,b"])
    found = {key: one.distribution() for key, one in ranges.items()}
    assert found["optimizer.lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert found["model.blocks"] == optuna.distributions.IntDistribution(1, 4)
    assert found["w"] == optuna.distributions.CategoricalDistribution(("a", "b"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0"], "hydra/sweeper=study: nothing to search"),
        (["optimizer.lr=interval(1,1)"], r"optimizer.lr=interval\(1,1\): an empty range"),
        (["optimizer.lr=interval(2,1)"], "an empty range; its lower end must be below"),
        (["optimizer.lr=tag(log,interval(0,1))"], "its lower end must be above 0"),
        (["optimizer.lr=tag(lgo,interval(1,2))"], "tag lgo means nothing here"),
        ([LR, "seed=0,1,2"], "seed=0,1,2: a study would choose the luckiest seed"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_line(overrides, said):
    with pytest.raises(UserError, match=said):
        space.fixed_and_ranges({}, overrides)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_follow_from_the_seed_however_often_a_study_is_left(sampler, optuna, tmp_path):
    """A sampler that began again with its seed would repeat its first proposals."""
    whole = searched(tmp_path / "whole", 8, plan(sampler=sampler))
    assert searched(tmp_path / "parts", 8, plan(sampler=sampler), batches=4) == whole
    assert len(set(whole)) == 8
    other = searched(tmp_path / "other", 8, plan(sampler=sampler, seed=1))
    assert not set(other) & set(whole)


def test_the_sampler_learns_from_results(optuna, tmp_path):
    """Of what it proposes later nearly half or more is in the better quarter of the space."""
    given = plan(pruner="none", n_startup=8)
    found = searched(tmp_path / "tpe", 40, given)[20:]
    P_means = [float(dict(o.split("=") for o in run)["objective.times.P_mean"]) for run in found]
    assert sum(-1.75 < value < -1.25 for value in P_means) > 8


def test_a_trial_that_was_running_is_taken_up_under_its_number(optuna, tmp_path):
    with study.opened(tmp_path, plan()) as current:
        (begun,) = current.next(2, 1, retry_failed=False)
    journal = tmp_path / study.JOURNAL
    with journal.open("a") as file:
        file.write('{"op_code": 6, "wor')  # a line that was cut
    (tmp_path / f"{study.JOURNAL}.lock").symlink_to(journal)  # Optuna's, of the killed process
    with study.opened(tmp_path, plan()) as current:
        assert current.next(2, 1, retry_failed=False) == [begun]
        current.tell(begun.number, finished(tmp_path, begun, 1.0))
        (second,) = current.next(2, 1, retry_failed=False)
        assert second.number == 1 and second.overrides != begun.overrides
        current.tell(second.number, finished(tmp_path, second, 2.0))
        assert not current.next(2, 1, retry_failed=False)
    trials = json.loads((tmp_path / table.TABLE).read_text())["trials"]
    assert [(row["state"], row["value"]) for row in trials] == [("complete", 1), ("complete", 2)]


def test_failed_trials_count_and_are_tried_again_when_asked(optuna, tmp_path):
    with study.opened(tmp_path, plan()) as current:
        (first,) = current.next(1, 1, retry_failed=False)
        current.tell(first.number, finished(tmp_path, first, 1.0, status="failed"))
        assert not current.next(1, 1, retry_failed=False)
        (again,) = current.next(1, 1, retry_failed=True)
        assert again.overrides == first.overrides and again.number == 1
        current.tell(again.number, finished(tmp_path, again, float("nan")))
        assert not current.next(1, 1, retry_failed=False)
        (new,) = current.next(2, 1, retry_failed=False)
        assert new.overrides != first.overrides
    states = [row["state"] for row in json.loads((tmp_path / table.TABLE).read_text())["trials"]]
    assert states == ["fail", "fail", "running"]


def test_several_at_a_time_are_in_different_folders(optuna, tmp_path):
    with study.opened(tmp_path, plan("weighting=unit,no_prior")) as current:
        batch = current.next(6, 4, retry_failed=False)
        assert {tuple(trial.overrides) for trial in batch} <= {
            ("weighting=unit",),
            ("weighting=no_prior",),
        }
        assert len({tuple(trial.overrides) for trial in batch}) == len(batch) <= 2


def test_a_metric_of_which_more_is_better_is_maximised(optuna, tmp_path):
    recall = study.Plan(plan().ranges, [], SETTINGS, "quality/one_step/recall")
    with study.opened(tmp_path, recall) as current:
        for value in (0.2, 0.6, 0.4):
            (trial,) = current.next(3, 1, retry_failed=False)
            ended = finished(tmp_path, trial, 0.0)
            ended.write_metrics({"status": "done", "metrics": {recall.metric: value}})
            current.tell(trial.number, ended)
        assert current._optuna.best_trial.number == 1
    assert table.read([tmp_path], []).best.number == 1
    assert table.read([tmp_path], []).best.value == 0.6


def test_one_process_at_a_time(optuna, tmp_path):
    with (
        study.opened(tmp_path, plan()),
        pytest.raises(UserError, match="another process goes on with this study"),
        study.opened(tmp_path, plan()),
    ):
        pass


def begun(folder, *overrides):
    """The plan of `python run.py -m hydra/sweeper=study ...`, without its jobs."""
    composing.prepare()
    given = ["hydra/sweeper=study", f"hydra.sweep.dir={folder}", *overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config(
            "config", given, RunMode.MULTIRUN, with_log_configuration=False
        )
        callbacks.Sweep(retry_failed=False).on_multirun_start(config)
        return callbacks.planned_study(config.hydra)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*TOY, "hydra.sweeper.n_trials=0", LR], "hydra.sweeper.n_trials=0: must be at least 1"),
        ([*TOY, "optimizer.lr=interval(-1,1)"], "optimizer.lr=-1"),
        ([*TOY[:-1], "optimized_metric=eval/nothing", LR], "optimized_metric=eval/nothing"),
        ([*DIGITS, LR], "final/one_step/frechet_distance is measured at a run's end alone"),
        ([*DIGITS, "sampler=[one_step],[two_step]"], "not the same in all runs of this study"),
    ],
)
def test_an_impossible_study_is_one_line_and_writes_nothing(
    overrides, said, optuna, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        begun(tmp_path / "study", *overrides)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_without_optuna_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        begun(tmp_path / "study", *TOY, LR)
    said = "hydra/sweeper=study: needs Optuna; pip install -e '.[optuna]'"
    assert said in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_a_study_of_another_space_is_refused(optuna, tmp_path, capsys):
    with study.opened(tmp_path, begun(tmp_path, *TOY, LR)):
        pass
    begun(tmp_path, *TOY, LR, "hydra.sweeper.n_trials=99")
    for changed, said in (
        ("optimizer.lr=tag(log,interval(1e-4,1e-1))", "space.optimizer.lr="),
        (f"{P_MEAN}", "space.objective.times.P_mean=interval(-2.0, 0.0) (there: not given)"),
        ("hydra.sweeper.seed=1", "seed=1 (there: 0)"),
        ("optimized_metric=eval/error", "optimized_metric=eval/error (there: eval/loss)"),
    ):
        given = [o for o in (*TOY, LR) if o.partition("=")[0] != changed.partition("=")[0]]
        with pytest.raises(SystemExit):
            begun(tmp_path, *given, changed)
        assert said in capsys.readouterr().err


def judged(folder, trial, tag=None, **settings):
    """What stops this trial's run early, as its job asks for it."""
    given = {**SETTINGS, **settings, "_target_": study.TARGET, "trial": trial.number}
    hydra_cfg = OmegaConf.create({"sweeper": given, "sweep": {"dir": str(folder)}})
    config = composing.composed([*TOY, *([f"optimized_metric={tag}"] if tag else [])])
    return study.hopeless(hydra_cfg, config)


def test_a_run_is_hopeless_where_its_best_is_worse_than_the_median(optuna, tmp_path):
    answers = []
    with study.opened(tmp_path, plan()) as current:
        for losses in ([3.0, 2.0], [4.0], [2.5, 2.5], [1.0, 9.0]):
            (trial,) = current.next(4, 1, retry_failed=False)
            ask = judged(tmp_path, trial)
            answers.append([ask(k, {metrics.LOSS: loss}) for k, loss in enumerate(losses, 1)])
            assert ask(1, {metrics.LOSS: 99.0}) == answers[-1][-1]  # what was told stays
            ended = Status.pruned if answers[-1][-1] else Status.done
            current.tell(trial.number, finished(tmp_path, trial, losses[-1], status=ended))
    assert answers == [[False, False], [True], [False, True], [False, False]]
    trials = table.read([tmp_path], []).trials
    assert [(t.state, t.value, t.stopped_at) for t in trials] == [
        ("done", 2.0, None),
        ("pruned", 4.0, 1),
        ("pruned", 2.5, 2),
        ("done", 9.0, None),
    ]


def test_only_a_trial_of_a_study_that_prunes_is_judged(optuna, tmp_path):
    with study.opened(tmp_path, plan()) as current:
        (trial,) = current.next(1, 1, retry_failed=False)
    assert judged(tmp_path, trial) is not None
    assert judged(tmp_path, trial, pruner="none") is None
    assert judged(tmp_path, study.Proposal(None, [])) is None  # the run by itself, later
    assert study.hopeless(OmegaConf.create({"sweeper": {"_target_": "a.Basic"}}), None) is None


def test_a_run_that_is_hopeless_stops_at_that_evaluation(tmp_path):
    """And goes on from there where it is asked for by itself."""
    small = (*TOY, "trainer.budget.steps=6", "trainer.evaluate_every=2")
    asked = []

    def hopeless(step, evaluated):
        asked.append((step, evaluated[metrics.LOSS]))
        return step == 4

    def ran(**more):
        parts = built(tmp_path / "run", *small)
        with parts.folder.open({"config.yaml": yaml.safe_dump(plain(parts.config))}):
            return run(parts, **more)

    found = ran(hopeless=hopeless)
    assert found["status"] == Status.pruned and found["steps"] == 4
    assert [step for step, _ in asked] == [2, 4] and found["metrics"][metrics.LOSS] == asked[1][1]
    assert ran()["status"] == Status.done


def statuses(folder):
    return {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in folder.glob("*/metrics.json")
    }


def jobs(folder, n_trials, *more):
    given = ["run.py", "-m", "hydra/sweeper=study", f"hydra.sweep.dir={folder}"]
    given += [*quick(*TOY), f"hydra.sweeper.n_trials={n_trials}", "hydra.sweeper.n_startup=1"]
    return [*given, "hydra.sweeper.pruner_startup=1", LR, *more]


@pytest.mark.slow
def test_a_study_that_is_killed_between_and_in_trials_is_the_same_study(optuna, tmp_path, commands):
    """The proposals, the pruned ones among them, and every number of an undisturbed one."""
    small = ["trainer.budget.steps=30", "trainer.evaluate_every=10", "trainer.save_every=5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = commands(*jobs(whole, 5, *small))
    assert ended.returncode == 0, ended.stderr

    first = commands(*jobs(parts, 2, *small))  # left between trials
    assert first.returncode == 0 and len(statuses(parts)) == 2
    killed = commands.start(*jobs(parts, 5, *small))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:  # in the third trial's middle
        if len(statuses(parts)) > 2 and "running" in statuses(parts).values():
            running = next(name for name, s in statuses(parts).items() if s == "running")
            if list((parts / running / "checkpoints").glob("step-*.pt")):
                break
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.ended().returncode == -signal.SIGKILL
    again = commands(*jobs(parts, 5, *small))
    assert again.returncode == 0, again.stderr
    assert "going on at step " in again.stdout
    tables = [json.loads((folder / table.TABLE).read_text()) for folder in (whole, parts)]
    assert tables[0] == tables[1] and len(tables[0]["trials"]) == 5
    assert statuses(whole) == statuses(parts) and len(statuses(parts)) == 5

    pruned = [row for row in tables[0]["trials"] if row["state"] == "pruned"]
    assert pruned, "no trial was stopped early: another seed for this test"
    for run_ in read.found([parts]):
        steps = [row["stopped_at"] for row in pruned if own(row) <= set(run_.overrides)]
        assert run_.record["steps"] == (steps[0] if steps else 30)
        assert (run_.status == "pruned") == bool(steps)
    page = (parts / "summary.md").read_text()
    best = table.read([parts], read.found([parts])).best
    assert f"best in trial {best.number}" in page and "pruned at 10" in page
    assert all(trial.run for trial in table.read([parts], read.found([parts])).trials)
    assert "The study" in (parts / "report.html").read_text()
    other = commands(*jobs(parts, 5, *small), "hydra.sweeper.seed=1")
    assert other.returncode == 2 and "holds a study by other rules: seed=1" in other.stderr


def own(row):
    return {f"{key}={value}" for key, value in row["params"].items()}
