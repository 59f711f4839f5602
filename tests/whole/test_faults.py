"""The list of deliberate faults fits the code: each has its place, and tests that should notice."""

import pytest
import yaml

from scm.core.files import REPOSITORY

FAULTS = yaml.safe_load((REPOSITORY / "tests" / "mutants" / "faults.yaml").read_text())


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_place(name):
    fault = FAULTS[name]
    text = (REPOSITORY / fault["file"]).read_text()
    assert text.count(fault["old"]) == 1 and fault["new"] != fault["old"]
    assert (REPOSITORY / fault["near"]).exists()


def test_there_are_many():
    assert len(FAULTS) >= 100
