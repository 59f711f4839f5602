"""Names of folders, what a sweep remembers, and sweeps through the real command line."""

import errno
import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import QUICK, TINY, quick
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from scm.commands import callbacks, sweep
from scm.config import compose as composing
from scm.core.errors import UserError
from scm.report import read, study
from scm.storage.folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]


def test_names_are_short_readable_and_of_the_overrides_alone():
    assert sweep.job_name(["seed=0", "weighting=unit"]) == "weighting=unit,seed=0"
    assert sweep.job_name(["weighting=unit", "seed=0"]) == "weighting=unit,seed=0"
    assert sweep.job_name(["model/time_embedding=fourier"]) == "model.time_embedding=fourier"
    assert sweep.sweep_name("weighting", ["seed=0,1"]) == "weighting"
    assert "/" not in sweep.sweep_name("../../elsewhere/x", [])
    adhoc = sweep.sweep_name("config", ["weighting=unit,no_prior", "seed=0,1"])
    assert adhoc.startswith("weighting+seed-") and adhoc != sweep.sweep_name("config", ["seed=0,1"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["objective.init='a/b'"], ["objective.init='a_b'"]),
        (["model.widths=[8,16]"], ["model.widths=[8.16]"]),
        (["a=" + "x" * 300 + "1"], ["a=" + "x" * 300 + "2"]),
    ],
)
def test_names_that_lose_something_have_a_hash(one, other):
    names = {sweep.job_name(one), sweep.job_name(other)}
    assert len(names) == 2
    assert all(sweep.PLAIN.fullmatch(name) and len(name) < 100 for name in names)


def record(**more):
    given = {"name": "s", "question": "?", "command": "python run.py", "git_commit": "a"}
    return sweep.Record(
        **{**given, "config_name": "s", "shared": ["a=8", "seed=0"], "swept": ["seed"], **more}
    )


def test_another_configuration_is_refused_and_other_code_is_named(tmp_path, caplog):
    sweep.begin(tmp_path, record())
    first = (tmp_path / "sweep.json").read_text()
    sweep.begin(tmp_path, record(shared=["seed=7", "a=8"]))
    assert not caplog.records
    for more, said in (
        ({"shared": ["a=9"]}, r"settings: a=9 \(there: 8\);"),
        ({"shared": []}, r"a=not given \(there: 8\);"),
        ({"shared": ["a=8", "+b/c=1"]}, r"b/c=1 \(there: not given\);"),
        ({"config_name": "t"}, r"--config-name=t \(there: s\);"),
    ):
        with pytest.raises(UserError, match=said):
            sweep.begin(tmp_path, record(**more))
    sweep.begin(tmp_path, record(git_commit="b"))
    assert "code has changed since the sweep began, from commit a to b" in caplog.text
    assert (tmp_path / "sweep.json").read_text() == first


def begun(name, folder, *overrides):
    """The start of `python run.py -cd sweeps -cn NAME -m ...`, without its jobs."""
    composing.prepare()
    given = [*overrides, f"hydra.sweep.dir={folder}"]
    given.append(f"hydra.searchpath=[file://{composing.CONF}]")
    with initialize_config_dir(version_base="1.3", config_dir=str(REPOSITORY / "sweeps")):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config(name, given, RunMode.MULTIRUN, with_log_configuration=False)
        callbacks.Sweep(retry_failed=False).on_multirun_start(config)


def test_a_part_of_a_sweep_is_the_same_sweep(tmp_path, capsys):
    """One option of a group that its yaml varies sets other keys, but none that all jobs share."""
    begun("momentum", tmp_path)
    first = (tmp_path / "sweep.json").read_text()
    begun("momentum", tmp_path, "ablation=momentum", "seed=3")
    begun("momentum", tmp_path, "ablation=momentum,full,adagn")
    assert (tmp_path / "sweep.json").read_text() == first
    with pytest.raises(SystemExit):
        begun("momentum", tmp_path, "ablation=momentum", "trainer.batch_size=9")
    assert "settings: trainer.batch_size=9 (there: not given);" in capsys.readouterr().err


def test_a_failure_before_the_run_began_stands_in_its_folder(tmp_path):
    folder = RunFolder(tmp_path / "job")
    folder.record_failure({"config.yaml": "seed: 0\n"}, {"objective": "sct"}, "Traceback ...")
    metrics = folder.metrics()
    assert metrics["status"] == "failed" and metrics["traceback"] == "Traceback ..."
    folder.check({"seed": 0})  # so that it can be tried again


def test_a_report_that_the_disk_refuses_is_one_line(monkeypatch, capsys):
    """Hydra itself would make a warning of it, and end the sweep with exit code 0."""

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "summary.csv"))

    monkeypatch.setattr(callbacks.report, "report_sweep", full)
    with pytest.raises(SystemExit) as ended:
        config = OmegaConf.create({"hydra": {"sweep": {"dir": "swept"}}})
        callbacks.Sweep(retry_failed=False).on_multirun_end(config)
    said = "error: swept/summary.csv: No space left on device; free some space"
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(said)


def statuses(folder):
    return {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in folder.glob("*/metrics.json")
    }


@pytest.mark.slow
def test_a_failing_job_is_recorded_and_tried_again_when_asked(tmp_path, commands):
    small = quick(*TINY["unet_small"], "trainer.budget.steps=2")
    jobs = ["run.py", "-m", f"hydra.sweep.dir={tmp_path}", *small, "trainer.batch_size=0,8"]
    first = commands(*jobs)
    assert first.returncode == 1, first.stderr
    (failed,) = [name for name, status in statuses(tmp_path).items() if status == "failed"]
    (done,) = [name for name, status in statuses(tmp_path).items() if status == "done"]
    metrics = json.loads((tmp_path / failed / "metrics.json").read_text())
    assert "trainer.batch_size=0: must be" in metrics["traceback"]
    assert (tmp_path / failed / ".hydra" / "command.txt").read_text().startswith("python run.py")

    weights = tmp_path / done / "checkpoints" / "ema.safetensors"
    before = weights.stat().st_mtime_ns
    again = commands(*jobs)
    assert again.returncode == 1 and weights.stat().st_mtime_ns == before
    assert f"skipped, done: {done}" in again.stdout
    assert f"skipped, failed before: {failed}" in again.stdout
    retried = commands(*jobs, "hydra.callbacks.sweep.retry_failed=true")
    assert f"trying again: {failed}" in retried.stdout and retried.returncode == 1


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path, commands):
    """SIGKILL in the first job's middle: the same command resumes it and does the second."""
    jobs = ["run.py", "-m", f"hydra.sweep.dir={tmp_path}", *quick(*TINY["unet_small"]), "seed=0,1"]
    jobs += ["trainer.budget.steps=40", "trainer.save_every=5", "trainer.evaluate_every=1000"]
    killed = commands.start(*jobs)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/checkpoints/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.ended().returncode == -signal.SIGKILL
    assert list(statuses(tmp_path).values()) == ["running"]
    again = commands(*jobs)
    assert again.returncode == 0, again.stderr
    assert "going on: " in again.stdout and "going on at step " in again.stdout
    assert list(statuses(tmp_path).values()) == ["done", "done"]
    other = commands(*jobs[:-1], "trainer.evaluate_every=999")
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "trainer.evaluate_every=999 (there: 1000)" in other.stderr


@pytest.mark.slow
def test_the_toys_grid_ends_with_a_report(tmp_path, commands):
    small = ["trainer.budget.steps=2", "trainer.evaluate_every=2", "trainer.batch_size=16"]
    small += ["trainer.threads=1", *TINY["mlp"][1:]]
    sweep_dir = f"hydra.sweep.dir={tmp_path}"
    ended = commands("run.py", "-cd", "sweeps", "-cn", "toy", sweep_dir, *small)
    assert ended.returncode == 0, ended.stderr
    jobs = {f"weighting={w},seed={s}" for w in ("unit", "no_prior") for s in (0, 1, 2)}
    assert statuses(tmp_path) == dict.fromkeys(jobs, "done")
    assert "Does the weight matter on the toy" in (tmp_path / "report.html").read_text()
    table = (tmp_path / "summary.md").read_text()
    assert table.count("3 done") == 2 and "toy one step rms" in table
    said = (tmp_path / "weighting=unit,seed=0" / ".hydra" / "command.txt").read_text()
    assert said.startswith("python run.py -cd sweeps -cn toy hydra.mode=RUN hydra.run.dir=")

    run = EventAccumulator(str(tmp_path / "weighting=unit,seed=0")).Reload()
    content = run.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["weighting"].string_value == "unit" and settings["seed"].number_value == 0


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped(tmp_path, commands):
    """With a larger n_trials new runs follow, and what is done is not done again."""
    pytest.importorskip("optuna", reason="needs .[optuna]")
    jobs = ["run.py", "-cd", "sweeps", "-cn", "hparams_search"]
    jobs += [f"hydra.sweep.dir={tmp_path}", *QUICK]
    jobs += ["data=bimodal", *TINY["mlp"], "trainer.budget.steps=2"]
    jobs += ["hydra.sweeper.n_startup=1"]  # from then on proposals follow results
    first = commands(*jobs, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    two = statuses(tmp_path)
    again = commands(*jobs, "hydra.sweeper.n_trials=4")
    assert again.returncode == 0, again.stderr
    four = statuses(tmp_path)
    assert len(two) == 2 and len(four) == 4 and two.items() < four.items()
    assert again.stdout.count(f"done: {tmp_path}/") == 2
    losses = {
        path.parent: json.loads(path.read_text())["metrics"]["eval/loss"]
        for path in tmp_path.glob("*/metrics.json")
    }
    found = study.read([tmp_path], read.found([tmp_path]))
    assert found.best.value == min(losses.values()) and len(found.trials) == 4
    best = min(losses, key=losses.get)
    config = yaml.safe_load((best / ".hydra" / "config.yaml").read_text())
    assert found.best.params["objective.times.P_mean"] == config["objective"]["times"]["P_mean"]
    assert found.best.run == best.name


LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}


@pytest.mark.parametrize(("launcher", "extra"), LAUNCHERS.items())
def test_the_documents_commands_of_a_launcher_compose(launcher, extra):
    """Each option of docs/sweeps.md that a launcher is given is one of its own."""
    pytest.importorskip(f"hydra_plugins.hydra_{extra}_launcher", reason=f"needs .[{extra}]")
    page = (REPOSITORY / "docs" / "sweeps.md").read_text().replace("\\\n", " ")
    lines = [
        line.split("#")[0] for line in page.splitlines() if f"hydra/launcher={launcher}" in line
    ]
    commands = [shlex.split(line) for line in lines if line.lstrip().startswith("python run.py")]
    assert commands
    for words in commands:
        given = [word for word in words if word.startswith(("hydra/launcher", "hydra.launcher"))]
        with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
            config = compose("config", overrides=given, return_hydra_config=True)
        options = OmegaConf.to_container(config.hydra.launcher, resolve=False)
        for key, value in (word.removeprefix("hydra.launcher.").split("=") for word in given[1:]):
            assert str(options[key]) == value


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers_use_the_same_folders_and_exit_codes(launcher, tmp_path, commands):
    extra = LAUNCHERS[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{extra}_launcher", reason=f"needs .[{extra}]")
    jobs = ["run.py", "-m", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}", *QUICK]
    jobs += ["data=bimodal", *TINY["mlp"], "trainer.budget.steps=2", "trainer.batch_size=0,8"]
    ended = commands(*jobs)
    assert ended.returncode == 1, ended.stderr
    wanted = {"trainer.batch_size=0": "failed", "trainer.batch_size=8": "done"}
    assert statuses(tmp_path) == wanted and (tmp_path / "report.html").exists()
    assert commands(*jobs).returncode == 1 and statuses(tmp_path) == wanted


@pytest.mark.slow
def test_a_study_by_a_launcher_of_two_processes(tmp_path, commands):
    """Each batch of two is in two processes, which tell the study's file what they measure."""
    pytest.importorskip("optuna", reason="needs .[optuna]")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs .[joblib]")
    jobs = ["run.py", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *QUICK]
    jobs += ["hydra/sweeper=study", "hydra.sweeper.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    jobs += ["data=bimodal", *TINY["mlp"], "trainer.budget.steps=2", "trainer.evaluate_every=1"]
    ended = commands(*jobs, "hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-4,1e-2)")
    assert ended.returncode == 0, ended.stderr
    found = study.read([tmp_path], read.found([tmp_path]))
    assert [trial.state for trial in found.trials] == ["done", "done"]
    journal = (tmp_path / "study.log").read_text()
    assert journal.count('"step":1') == 2  # both, from processes of their own
