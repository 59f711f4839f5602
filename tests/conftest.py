"""What all tests share: warm commands, small data, trained runs; and the order of the tests."""

import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# the networks here are tiny, and another job may hold the other core
os.environ |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}

import runs  # torch reads the number of threads when it is imported
from commands import Commands
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scm.evaluation.quality import Quality

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The repository's root, from which the project is run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`shared(name, make)`: the folder that `make(folder)` filled, once for all processes of xdist.

    Nobody may change what lies there; a test that has to works on a copy.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = place / name, place / f"{name}.done"
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def digits(shared: Callable[..., Path]) -> list[str]:
    """The first of MNIST's images as a data set: overrides that read it, which `trained` adds."""
    runs.DIGITS[:] = runs.small_digits(shared("digits", runs.write_digits))
    return runs.DIGITS


@pytest.fixture(scope="session")
def models(shared: Callable[..., Path], digits: list[str]) -> Path:
    """A folder of short runs, `teacher`, `student`, `sct`, `conditional` and `toy`."""
    return shared("models", runs.train_models)


@pytest.fixture(scope="session")
def judge(shared: Callable[..., Path], digits: list[str]) -> Quality:
    """A judge with few real images."""
    made = shared("judge", lambda folder: runs.small_quality(folder, train=300, test=100).reference)
    return runs.small_quality(made, train=300, test=100)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs the project's commands: `commands("run.py", "seed=1")`."""
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(autouse=True)
def empty_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures stay blank but in tests marked `pictures`: drawing is most of a short run's time."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)


def pytest_collection_finish() -> None:
    """All is imported: no collection of garbage, of which a run makes some, looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make soak` adds this."""
    parser.addoption("--soak", action="store_true", help="run the soak tests, and only these")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, so that a plain mistake shows before the slow ones start."""
    wanted = bool(config.getoption("--soak"))
    left_out = [i for i in items if bool(i.get_closest_marker("soak")) != wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
