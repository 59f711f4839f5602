"""No space left, at any write: what was saved stays good, and the run goes on or says why not."""

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import QUICK, TINY, trained
from tensorboard.summary.writer.record_writer import RecordWriter

from scm.core import files
from scm.core.errors import UserError
from scm.evaluation.evaluator import Evaluation, Evaluator
from scm.storage import store as checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = (
    *("data=bimodal", *TINY["mlp"], "trainer.budget.steps=9", "trainer.log_every=1"),
    *("trainer.save_every=3", "trainer.evaluate_every=4"),
)


@pytest.fixture
def full(monkeypatch):
    """Let the disk be full for files of this name, from the `after`-th write to one of them on."""

    def install(name, after=0):
        class Full(io.FileIO):
            def write(self, data):
                super().write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def opened(path, mode):
            nonlocal after
            if not fnmatch(path.name, name):
                return open(path, mode)
            after -= 1
            return open(path, mode) if after >= 0 else Full(path, mode)

        monkeypatch.setattr(files, "open", opened, raising=False)

    return install


@pytest.fixture
def quick_evaluation(monkeypatch):
    """A loss that falls, and one small picture."""

    def evaluated(self, net, step, *, final):
        picture = np.zeros((2, 2, 3), np.uint8)
        return Evaluation(metrics={"eval/loss": 1.0 / step}, pictures={"dot": picture})

    monkeypatch.setattr(Evaluator, "__call__", evaluated)


def digest(path):
    saved = checkpoint.newest(path / "checkpoints")
    return checkpoint.digest([saved[part] for part in ("step", "net", "ema", "optimizer", "best")])


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_good(
    tmp_path, full, quick_evaluation, monkeypatch
):
    """At each file that a run cannot do without; with space again it ends like the undisturbed."""
    trained(tmp_path / "whole", *RUN)
    for name, after in (
        (".step-*.tmp", 1),
        (".ema.safetensors*", 1),
        (".best.safetensors*", 1),
        (".metrics.json.*", 3),
        ("metrics.jsonl", 6),
    ):
        path = tmp_path / name.strip(".*")
        full(name, after)
        full_disk = pytest.raises(UserError, match=r"No space left on device; free some")
        with full_disk, files.refusals_named():
            trained(path, *RUN)
        monkeypatch.delattr(files, "open")
        assert checkpoint.newest(path / "checkpoints")["step"] in (3, 6, 9)
        assert not list(path.rglob(".*.tmp"))
        assert trained(path, *RUN)["status"] == "done"
        assert digest(path) == digest(tmp_path / "whole")
        steps = [json.loads(s)["step"] for s in (path / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9]


@pytest.mark.slow
def test_pictures_and_tensorboards_file_are_not_worth_a_run(
    tmp_path, full, quick_evaluation, monkeypatch, caplog, capsys
):
    caplog.set_level(logging.WARNING)

    def no_space(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full("*.png*")
    monkeypatch.setattr(RecordWriter, "write", no_space)
    assert trained(tmp_path / "run", *RUN)["status"] == "done"
    said = [record.getMessage() for record in caplog.records]
    assert sum("a picture is missing" in line for line in said) == 3
    assert sum("no more for tensorboard" in line for line in said) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_only_what_the_disk_refuses_is_the_users(tmp_path):
    too_long = pytest.raises(UserError, match=r"name: File name too long; choose a shorter name")
    with too_long, files.refusals_named():
        files.write_atomic(tmp_path / ("n" * 300 + "name"), b"")
    with pytest.raises(FileNotFoundError), files.refusals_named():
        files.append_line(tmp_path / "nowhere" / "file", "")
    with pytest.raises(ZeroDivisionError), files.refusals_named():
        1 / 0  # noqa: B018
    with pytest.raises(RuntimeError, match="size mismatch"), files.refusals_named():
        raise RuntimeError("size mismatch")


def test_a_lack_of_memory_is_one_line():
    """As torch says it on a CPU and on a GPU, and as Python does."""
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
    for error, said in (
        (
            RuntimeError("DefaultCPUAllocator: you tried to allocate 4 bytes. Error"),
            r" \(.* 4 bytes\)",
        ),
        (gpu, r" \(tried to allocate 2.00 GiB\)"),
        (MemoryError(), ""),
    ):
        lacking = pytest.raises(UserError, match=f"out of memory{said}; use smaller batches")
        with lacking, files.refusals_named():
            raise error


def test_torch_says_it_so():
    lacking = pytest.raises(UserError, match=r"\(tried to allocate 4611686018427387904 bytes\)")
    with lacking, files.refusals_named():
        torch.empty(2**60)


NAMESPACES = shutil.which("unshare") and (
    subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True
    ).returncode
    == 0
)
TMPFS = """mount -t tmpfs -o size={size}k tmpfs {disk} &&
{command}; code=$?; cp -r {disk}/run {saved}; exit $code"""


def on_a_tiny_disk(tmp_path, size):
    """Run there until it is full; then go on with what was left there, on a disk with space."""
    disk, saved = tmp_path / "disk", tmp_path / f"saved-{size}"
    disk.mkdir(exist_ok=True)
    command = [sys.executable, "run.py", *QUICK, *RUN, "trainer.log_every=1"]
    first = " ".join(f"'{part}'" for part in [*command, f"hydra.run.dir={disk}/run"])
    script = TMPFS.format(size=size, disk=disk, saved=saved, command=first)
    there = {"cwd": REPOSITORY, "capture_output": True, "text": True}
    ended = subprocess.run(["unshare", "-rm", "sh", "-c", script], **there)
    assert "Traceback" not in ended.stderr, ended.stderr
    if ended.returncode:
        assert ended.returncode == 2 and "No space left on device" in ended.stderr.splitlines()[-1]
    again = subprocess.run([*command, f"hydra.run.dir={saved}"], **there)
    assert again.returncode == 0, again.stderr
    return ended.returncode, digest(saved)


@pytest.mark.soak
@pytest.mark.skipif(not NAMESPACES, reason="mounts need user namespaces")
def test_real_disks_of_four_sizes(tmp_path):
    """Full at the first file, at later ones, and never."""
    trained(tmp_path / "whole", *RUN)
    found = {size: on_a_tiny_disk(tmp_path, size) for size in (24, 200, 400, 20_000)}
    assert {end for _, end in found.values()} == {digest(tmp_path / "whole")}
    codes = {size: code for size, (code, _) in found.items()}
    print(codes)
    assert set(codes.values()) == {0, 2}
