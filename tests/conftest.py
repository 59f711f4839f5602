"""What all tests share: no display, few threads, fast tests first."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, so that a plain mistake shows before the slow ones start."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
