"""Jobs in their order, and what is done, skipped and gone on with when they are carried out."""

import logging
import shutil
from dataclasses import replace

import pytest
import yaml
from hydra import initialize_config_dir
from runs import QUICK, TINY
from signals import signal_at

from scm.commands import train
from scm.commands.plan import Job, plan
from scm.config.compose import CONF, composed
from scm.config.read import plain
from scm.core.errors import UserError
from scm.storage.folder import RunFolder, Status

SMALL = (*TINY["mlp"], *QUICK, "trainer.budget.steps=2")
TOY = ("data=bimodal", *SMALL)
DISTILLED = (
    *("experiment=toy_scd", *SMALL, "seed=5"),
    f"objective.teacher_overrides={[*SMALL, 'sampler.heun.steps=2']}",
)


@pytest.fixture
def config():
    """A distillation with a recipe's teacher, where another can be composed."""
    found = composed(DISTILLED)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield found


def written(job):
    """The file of .hydra that makes a folder the job's."""
    return {"config.yaml": yaml.safe_dump(plain(job.config))}


@pytest.fixture
def files(monkeypatch):
    """Without Hydra's own part, which only its command has."""
    monkeypatch.setattr(
        train, "hydra_files", lambda config: {"config.yaml": yaml.safe_dump(config)}
    )


def test_a_recipes_teacher_comes_first_on_the_runs_seed_and_nothing_is_written(config, tmp_path):
    teacher, student = plan(config, RunFolder(tmp_path / "run"))
    assert teacher.folder.path == tmp_path / "run" / "teacher"
    assert student == Job(config, RunFolder(tmp_path / "run"), str(teacher.folder.path))
    assert (teacher.config.seed, teacher.config.objective.name) == (5, "diffusion")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_recipe_is_one_job(tmp_path):
    alone = composed(TOY)
    assert plan(alone, RunFolder(tmp_path)) == [Job(alone, RunFolder(tmp_path), None)]


def test_a_folder_that_holds_nothing_but_a_teacher_is_new(config, tmp_path):
    folder = RunFolder(tmp_path)
    with folder.teacher.open(
        {"config.yaml": yaml.safe_dump(plain(plan(config, folder)[0].config))}
    ):
        pass
    assert len(plan(config, folder)) == 2
    with pytest.raises(UserError, match=r"teacher: holds a run with another configuration: seed=6"):
        plan(replace(config, seed=6), folder)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="holds files but no run"):
        plan(config, folder)


@pytest.mark.slow
def test_a_stopped_teacher_goes_on_and_what_is_done_is_not_repeated(
    config, files, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)  # else nothing goes to run.log
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as context:
        signal_at(0, context)
        stopped = train.run(config, folder)
    assert (stopped["status"], stopped["steps"]) == (Status.stopped, 1)
    assert [path.name for path in folder.path.iterdir()] == ["teacher"]
    done = train.run(config, folder)
    assert done["status"] == folder.teacher.status() == Status.done
    assert done["sources"]["teacher"]["path"] == str(folder.teacher.path)
    assert (folder.path / "run.log").exists() and (folder.teacher.path / "run.log").exists()

    signal_at(0, monkeypatch)  # whatever trains again is stopped
    shutil.rmtree(folder.teacher.path)
    assert train.run(config, folder) == done
