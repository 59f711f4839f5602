"""What a wheel holds beside the code, and where the code finds it without a clone."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ("conf", "data/mnist", "pretrained")


def test_the_wheel_ships_every_file_of_conf_data_and_pretrained(monkeypatch):
    told = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=told.update))
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path("setup.py")
    listed = {file: folder for folder, files in told["data_files"] for file in files}
    tracked = subprocess.check_output(["git", "ls-files", *SHIPPED], text=True).split("\n")
    assert {file for file in tracked if file} <= listed.keys()
    assert all(Path("share/scm", file).parent == Path(folder) for file, folder in listed.items())


def test_without_a_clone_it_is_looked_for_under_the_prefix(tmp_path):
    shutil.copytree(REPOSITORY / "scm", tmp_path / "scm")
    code = "import sys; from scm.core import files; print(files.REPOSITORY, files.WORK, sys.prefix)"
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, cwd=tmp_path, text=True).split()
    assert said == [str(Path(said[2]) / "share" / "scm"), ".", said[2]]
    here = subprocess.check_output(command, cwd=REPOSITORY, text=True).split()
    assert here[:2] == [str(REPOSITORY)] * 2
