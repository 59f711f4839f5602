"""A mistake, through the real commands: one line that helps, exit code 2, and nothing changed.

The table runs in this process through the commands' own entry points, a few rows as processes of
their own; `make soak` runs every row as a process.
"""

import ctypes
import gzip
import importlib
import logging
import os
import resource
import runpy
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from runs import QUICK, TINY, trained

from scm.storage import store

COMMANDS = (
    *("scm sample", "scm evaluate", "scm results", "scm report", "scm diagnose", "scm export"),
    *("scm features", "benchmark"),
)
REPOSITORY = Path(__file__).resolve().parents[2]
TOY = ("data=bimodal", *TINY["mlp"])
ONE = ("trainer.budget.steps=1", "trainer.evaluate_every=100")
GUIDE = ("--guide", "{place}/toy")
SECONDS = 5  # of a core, within which each answers as a process of its own
IDX = ("data.train_size=10", "data.train_images.sha256=null")  # ten images, whatever they are


@dataclass(frozen=True)
class Case:
    """`says` are parts of the line; `{place}` stands for the folder of prepared files."""

    command: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]

    def __str__(self):
        return " ".join([self.command, *self.arguments])


def rows_of(command):
    def row(*arguments, says=()):
        return Case(command, arguments, (says,) if isinstance(says, str) else says)

    return row


run, sample, benchmark = map(rows_of, ("run.py", "scm sample", "benchmark"))
evaluate, tabulate, report = map(rows_of, ("scm evaluate", "scm results", "scm report"))
diagnose, export, learn = map(rows_of, ("scm diagnose", "scm export", "scm features"))
QUICKSTART = "experiment=quickstart_scd"
OUT = ("--out", "{place}/new.npz")
CASES = (
    # groups and keys that are not there
    run("objective=gan", says=("gan", "lsd; meanflow; psd; scd; sct")),
    run("weightnig=unit", says="Could not override 'weightnig'; did you mean weighting?"),
    run("trainer.thread=1", says="'trainer.thread'; did you mean trainer.threads?"),
    run("model/time_embeding=fourier", says="did you mean model/time_embedding?"),
    run("sampler.heun.steps=3", says="'sampler.heun.steps'; there is: one_step, two_step"),
    run("objective.foo=1", says=("objective.foo", "there is: adaptive_weight, ")),
    run("weighting=unit,no_prior", says="weighting=unit,no_prior'; add -m to sweep"),
    run("+trainer.thread=1", says="trainer.thread: unknown key; did you mean trainer.threads?"),
    run("+foo=1", says="foo"),
    run("~optimizer.lr", says="optimizer.lr"),
    run("experiment=nothing", says="nothing"),
    run("seed", says="seed"),
    run("=3", says="=3"),
    run("model.widths=[8,", says="[8,"),
    run("trainer.batch_size=${nowhere}", says="nowhere"),
    run("--nothing", says="--nothing"),
    run("--cfg", "everything", says="everything"),
    run("-cn", "weighting", says="add -cd sweeps"),
    run("-cd", "sweeps", "-cn", "weightng", says="did you mean weighting?"),
    run("-cd", "{place}/nowhere", says="nowhere"),
    run("-sc", "foo=bar", says="--shell-completion"),
    run("~seed", says="seed: missing; give it a value"),
    run("trainer=null", says="trainer=null"),
    run("hydra/launcher=nothing", says="hydra/launcher/nothing"),
    run("trainer.batch_size=8\nseed=1", says="trainer.batch_size=8"),
    run("seed=1\x1b[31m", says="seed=1?[31m"),
    # a type or a range of each kind; every field's stands in tests/config
    run("trainer.batch_size=many", says="trainer.batch_size=many"),
    run("trainer.batch_size=null", says="trainer.batch_size"),
    run("objective.adaptive_weight=perhaps", says="perhaps"),
    run("objective.tangent.norm=l3", says="objective.tangent.norm=l3: must be one of rms, l2"),
    run("model.widths=3", says="model.widths"),
    run("trainer.batch_size=0", says="trainer.batch_size=0: must be"),
    run("trainer.budget.minutes=inf", says="trainer.budget.minutes=inf"),
    run("trainer.budget.steps=null", says="would never end"),
    run("optimizer.lr=nan", says="optimizer.lr=nan"),
    run("objective.times.P_std=1e300", says="objective.times.P_std=1e+300: must be"),
    run("optimizer.betas=[0.9]", says="optimizer.betas=[0.9]: must be"),
    run("model.widths=[0,8]", says="model.widths=[0, 8]: must be"),
    run("model.blocks=[1]", says=("model", "blocks")),
    run("model.norm=batch", says="model.norm='batch'"),
    run("seed=99999999999999999999", says="seed=99999999999999999999: must be"),
    run("data.train_size=4294967295", says="47040016 raw bytes instead of 3367254359296"),
    # combinations that cannot be
    run("sampler=[]", says="sampler: none is chosen"),
    run("sampler=heun", says="sampler=heun: needs a network that learns velocity"),
    run("sampler=multi_step", "sampler.multi_step.times=[1,1.2]", says="must fall strictly"),
    run("sampler.two_step.times=[3]", says="two_step"),
    run("sampler.two_step.times=[nan]", says="two_step"),
    run("objective=diffusion", "sampler.heun.sigma_min=90", says="sampler.heun.sigma_min=90.0"),
    run("objective=diffusion", "weighting=no_prior", says="use weighting=unit"),
    run("data=bimodal", says="images (1, 1, 1): this UNet needs"),
    run(
        "model.num_classes=7", "data.teacher=null", says="model.num_classes=7: mnist has 10 classes"
    ),
    run("objective=discrete_ct", "objective.derivative.N=1048576", *TOY, says="equal in float32"),
    run(
        *("objective=diffusion", *TOY, "sampler.heun.steps=100000", "sampler.heun.rho=0.1"),
        says="sampler.heun: steps=100000: times of its grid are equal",
    ),
    run("model.image_shape=[3,28,28]", says="image_shape stands at data.image_shape"),
    run("optimized_metric=fid", says="optimized_metric=fid: no number of this run"),
    run(QUICKSTART, "objective.teacher_recipe=nothing", says="objective.teacher_recipe=nothing"),
    run(QUICKSTART, "objective.teacher_overrides=['foo=1']", says=("teacher_recipe", "foo")),
    run(
        *(QUICKSTART, "objective.teacher_overrides=['trainer.batch_size=0']"),
        says="trainer.batch_size=0: must be",
    ),
    run(
        QUICKSTART,
        "model=unet_small",
        says=("teacher_recipe", "of another network", "and this run"),
    ),
    run(
        QUICKSTART, "data=fashion_mnist", says="trained with data.name=mnist, this run has fashion"
    ),
    run(
        QUICKSTART,
        "objective.teacher_recipe=mnist_sct",
        says="learns consistency, so it is not a velocity",
    ),
    run("trainer.compile=cuda_graphs", "trainer.micro_batch_size=8", says="cuda_graphs"),
    run("trainer.device=mps", says="trainer.device=mps: not on this machine"),
    run("data.sigma_data=0.3", says="data.sigma_data=0.3: mnist measures 0.481"),
    # paths: missing, not readable, of something else
    run(
        "objective=scd",
        "data.teacher=null",
        says=("objective.teacher=null", "python run.py objective=diffusion"),
    ),
    run("objective=scd", "objective.teacher=nowhere", says="objective.teacher=nowhere: no such"),
    run("objective.init=nowhere", says="objective.init=nowhere: no such"),
    run("objective.init={place}/toy", says="trained with data.name=bimodal, this run has mnist"),
    run("objective.init={place}/toy", *TOY[:2], "model.width=32", says="of another network"),
    run("objective.init={place}/damaged", *TOY, says="not weights of this"),
    run(
        "objective=scd",
        "objective.teacher={place}/toy",
        *TOY,
        says="learns consistency, so it is not a velocity",
    ),
    run("hydra.run.dir={place}/text.pt", says="text.pt: a file; name a folder"),
    run("hydra.run.dir={place}/mine", says="holds files but no run"),
    run("hydra.run.dir={place}/toy", *QUICK, *TOY, *ONE, "seed=5", says="seed=5 (there: 0)"),
    run("hydra.run.dir={place}/" + "n" * 300, says="File name too long"),
    run("hydra.run.dir=/sys/scm", says="/sys/scm"),
    run("objective.init='~nobody-here/x'", says="there is no such home folder"),
    run("hydra.run.dir={place}/garbled", *QUICK, *TOY, *ONE, says="not the config of a run"),
    run("hydra.run.dir={place}/linked", *QUICK, *TOY, *ONE, says="run.log is a link"),
    run("hydra.run.dir={place}/unreadable", *QUICK, *TOY, *ONE, says="not the record of a run"),
    # idx files
    run("data.root={place}/nowhere", says="train-images-idx3-ubyte.gz is missing"),
    run("data.root={place}/idx-cut", *IDX, says="not an idx file"),
    run("data.root={place}/idx-short", *IDX, says="raw bytes instead of 7856"),
    run("data.root={place}/idx-bomb", *IDX, says="more than 7856 raw bytes"),
    run("data.root={place}/idx-magic", *IDX, says="not an idx file"),
    run("data.root={place}/idx-magic", IDX[0], says="(SHA-256"),
    run("data=fashion_mnist", "data.root={place}/empty", says="data.download=true"),
    run("data=cifar10", "data.root={place}/empty", says="cifar-10-python.tar.gz is missing"),
    run("data=image_folder", says="data.root=null: set data.root=FOLDER or data.root=FILE.zip"),
    run("data=image_folder", "data.root={place}/empty", says="there are no pictures in it"),
    run("data.download=true", says="data.download=true: no download"),
    # sampling
    sample("{place}/empty", *OUT, says="empty: no weights in this folder"),
    sample("{place}/text.pt", *OUT, says="text.pt: a checkpoint, which its own"),
    sample("{place}/text.safetensors", *OUT, says="not weights of this project"),
    sample("{place}/foreign.pt", *OUT, says="foreign.pt"),
    sample("{place}/toy", says="nothing to write"),
    sample("{place}/toy", "--out", "{place}/text.pt", says="text.pt: exists"),
    sample("{place}/toy", "--out", "{place}/nowhere/x.npz", says="no folder"),
    sample("{place}/toy", "--grid", "{place}/empty", "--overwrite", says="empty: a folder"),
    sample("{place}/toy", *OUT, "-n", "0", says="-n 0: must be"),
    sample("{place}/toy", *OUT, "--label", "3", says="--label 3: the model is unconditional"),
    sample("{place}/toy", *OUT, "--sampler", "magic", says="--sampler magic: unknown; there is"),
    sample("{place}/toy", *OUT, "--sampler", "heun", says="needs a network that learns velocity"),
    sample("{place}/toy", *OUT, "--sampler", "two_step", "times=[x]", says="times=[x]"),
    sample("{place}/toy", *OUT, "--sampler", "two_step", "foo=1", says="foo"),
    sample("{place}/toy", *OUT, "--device", "mps", says="mps"),
    sample("{place}/toy", *OUT, "--guidance", "2", says="--guidance: needs a weaker model"),
    sample("{place}/toy", *OUT, *GUIDE, "--guidance", "-1", says="--guidance -1: must be"),
    sample("{place}/toy", *OUT, *GUIDE, "--guidance-below", "0", says="below 0: must be a noise"),
    sample("{place}/toy", *OUT, *GUIDE, says="so it is not a velocity to distil"),
    sample("{place}/toy", *OUT, "--guide", "{place}/no", says="no: no such file or folder"),
    sample(says="model"),
    sample("{place}/toy", *OUT, "-n", "10000000000", says="-n 10000000000: must be"),
    sample("{place}/unnamed.safetensors", *OUT, says="sampler=x: must be a group"),
    # evaluations, their tables, reports, diagnostics, feature networks, exports
    evaluate("{place}/text.npz", says="text.npz: not a file of images"),
    evaluate("{place}/zeros.npz", says="zeros.npz: not a file of images"),
    evaluate("{place}/toy", "-n", "9", says="-n 9: must be at least 10"),
    tabulate("{place}/text.pt", says="text.pt: not a result of scm.commands.evaluate"),
    tabulate("{place}/empty", says="no results there"),
    report("{place}/nowhere", says="no run, and no folder of runs"),
    report("{place}/toy", "--out", "{place}/text.pt", says="text.pt: File exists; a file"),
    diagnose("{place}/toy", "-n", "1", says="-n 1: must be at least 2"),
    diagnose("{place}/toy", "--out", "{place}/text.pt", says="text.pt: a file"),
    learn(says="exists; name another file"),
    learn("--epochs", "0", "--out", "{place}/new", says="--epochs 0: must be"),
    export("{place}/empty", "{place}/new", says="the run is new, not done"),
    export("{place}/toy", "{place}/new", "-n", "5", says="-n 5: must be at least 10"),
    export("{place}/toy", "{place}/new", "--half", says="--half: stores weights as float16"),
    export("{place}/toy", "{place}/new", "--to", "onnx", "--seeds", "1", says="--seeds: --to onnx"),
    # benchmarks
    benchmark("--suite", "vibes", says="vibes"),
    benchmark("--overrides", "trainer.threads=0", says="trainer.threads=0"),
    benchmark("--suite", "sampling", "--compile", says="--compile"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs and what else the rows name, good and bad."""
    place = tmp_path_factory.mktemp("bad")
    toy = place / "toy"
    trained(toy, *TOY, *ONE)
    for name in ("empty", "mine"):
        (place / name).mkdir()
    (place / "mine" / "thesis.txt").write_text("x")
    for name in ("text.pt", "text.safetensors", "text.npz"):
        (place / name).write_text("no such thing")
    torch.save({"weights": torch.ones(2)}, place / "foreign.pt")
    for name in ("damaged", "unreadable"):
        shutil.copytree(toy, place / name)
    for path in (place / "damaged" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    (place / "unreadable" / "metrics.json").write_text("{")
    for name in ("garbled", "linked"):
        shutil.copytree(toy, place / name)
    (place / "garbled" / ".hydra" / "config.yaml").write_text("a: [")
    (place / "linked" / "run.log").symlink_to(place / "text.pt")
    (place / "zeros.npz").symlink_to("/dev/zero")
    for name in ("secret.safetensors", "secret.pt"):
        (place / name).write_text("x")
    for name in ("locked", "fixed"):
        (place / name).mkdir()
    weights, config = store.read_weights(toy)
    store.save_weights(place / "unnamed.safetensors", weights, {**config, "sampler": "x"})

    header = struct.pack(">HBB3I", 0, 8, 3, 10, 28, 28)
    zeros = gzip.compress(bytes(10_000_000))
    for name, data in {
        "cut": gzip.compress(header + os.urandom(7840))[:-500],
        "short": gzip.compress(header + bytes(7839)),
        "bomb": zeros * 1000,  # 10 GB
        "magic": gzip.compress(b"\0\0\x0d\3" + header[4:] + bytes(7840)),
    }.items():
        (place / f"idx-{name}").mkdir()
        (place / f"idx-{name}" / "train-images-idx3-ubyte.gz").write_bytes(data)
    for name in ("locked", "secret.safetensors", "secret.pt"):
        (place / name).chmod(0)
    (place / "fixed").chmod(0o555)
    yield place
    for name in ("locked", "fixed"):  # for whoever clears up
        (place / name).chmod(0o755)


def stamps(folder):
    """Every path below, with its size and the time of its last change."""
    return {path: (s := path.lstat()).st_size + s.st_mtime_ns for path in folder.rglob("*")}


def arguments_of(case, place):
    arguments = [argument.replace("{place}", str(place)) for argument in case.arguments]
    placed = any(argument.startswith("hydra.run.dir=") for argument in arguments)
    if case.command == "run.py" and not placed:
        arguments.append(f"hydra.run.dir={place / 'new'}")
    if case.command == "run.py" and "trainer.budget" not in str(arguments):
        arguments.append(ONE[0])  # so that a row that is no mistake shows soon
    return arguments


def check(case, code, error):
    assert code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n"), error
    missing = [part for part in case.says if part not in error]
    assert not missing, error


@pytest.fixture
def untouched(place):
    """Nothing is written, in the prepared folder or where runs go by themselves."""
    folders = (place, REPOSITORY / "outputs")
    before = [stamps(folder) for folder in folders]
    yield
    assert [stamps(folder) for folder in folders] == before


def in_process(case, arguments, monkeypatch):
    """Run the command's entry point here; returns its exit code, 0 where it only returns."""
    monkeypatch.setattr(sys, "argv", [case.command, *arguments])
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)  # composes once more
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        if case.command == "run.py":
            runpy.run_path("run.py", run_name="__main__")
        else:
            package, _, name = case.command.partition(" ")
            module = f"scm.commands.{name}" if name else f"{package}.__main__"
            importlib.import_module(module).main(arguments)
    except SystemExit as ended:
        return ended.code
    finally:
        root.handlers[:], root.level = handlers, level
    return 0


CAPABILITIES = 0b110  # of root: to write and to read what the permissions refuse


@pytest.fixture
def unprivileged():
    """Let permissions count for root too, as long as a test runs."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("rest", ctypes.c_uint32 * 5))

    if sys.platform != "linux":
        pytest.skip("capabilities are Linux's")
    libc, header, sets = ctypes.CDLL(None), Header(0x20080522, 0), Sets()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    before = sets.effective
    sets.effective = before & ~CAPABILITIES
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
    yield
    sets.effective = before
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0


REFUSED = (  # of what {place}/locked holds nothing can be seen, and {place}/fixed takes nothing new
    run("data.root={place}/locked", says="locked"),
    run("objective.init={place}/locked/x", *TOY, says="locked/x: Permission denied; change its"),
    run("objective.init={place}/secret.pt", *TOY, says="secret.pt: a checkpoint, which"),
    run("hydra.run.dir={place}/fixed/run", *QUICK, *TOY, *ONE, says="Permission denied; change"),
    sample("{place}/toy", "--out", "{place}/fixed/x.npz", says="fixed cannot be written"),
    sample("{place}/secret.safetensors", *OUT, says="secret.safetensors"),
    tabulate("{place}/secret.pt", says="Permission denied"),
    report("{place}/toy", "--out", "{place}/fixed/new", says="Permission denied; change its"),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_permissions_refuse_is_one_line(
    case, place, unprivileged, untouched, monkeypatch, capsys
):
    code = in_process(case, arguments_of(case, place), monkeypatch)
    check(case, code, capsys.readouterr().err)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (i % 10 > 0), id=str(c))
        for i, c in enumerate(CASES)
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_line_and_changes_nothing(case, place, untouched, monkeypatch, capsys):
    code = in_process(case, arguments_of(case, place), monkeypatch)
    check(case, code, capsys.readouterr().err)


def command_of(case):
    return [case.command] if case.command == "run.py" else ["-m", *case.command.split(maxsplit=1)]


def process(case, place):
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, *command_of(case), *arguments_of(case, place)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    check(case, ended.returncode, ended.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime - started.ru_utime + used.ru_stime - started.ru_stime


def test_no_row_stands_twice():
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(place, untouched):
    process(CASES[0], place)


@pytest.mark.parametrize("command", ["run.py", *COMMANDS])
def test_a_mistake_ends_the_process_so(command, place, untouched, commands):
    case = next(case for case in CASES if case.command == command)
    ended = commands(*command_of(case), *arguments_of(case, place))
    check(case, ended.returncode, ended.stderr)


@pytest.mark.soak
def test_every_mistake_in_a_process_of_its_own(place, untouched):
    seconds = {str(case): process(case, place) for case in CASES}
    slowest = max(seconds, key=seconds.get)
    print(f"{len(CASES)} mistakes; the slowest answer took {seconds[slowest]:.1f} s: {slowest}")
    assert seconds[slowest] < SECONDS
