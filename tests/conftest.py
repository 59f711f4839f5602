"""What all tests share: no display, few threads, fast tests first, soak tests only when asked."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # the networks here are tiny, and another job may hold the other core

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The repository's root, from which the project is run."""
    return REPOSITORY


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
