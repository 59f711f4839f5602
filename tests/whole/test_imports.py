"""The architecture: packages in one order, imports in one direction, no torch before the work."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ORDER = (  # a package imports itself and those before it
    *("core", "config", "nets", "method", "data"),
    *("storage", "evaluation", "training", "report", "export", "commands"),
)
KNOWS_HYDRA = ("scm.config.compose.", "scm.commands.")


def sources():
    """Module name -> file of the whole package."""
    files = sorted((REPOSITORY / "scm").rglob("*.py"))
    return {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in files}


def imported(file):
    """Every name that the file imports, also inside functions: "a.b" for `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: name the whole module"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


SOURCES = sources()
IMPORTS = {module: imported(file) for module, file in SOURCES.items()}


def own(name):
    """The project's module that an imported name comes from."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def test_the_packages_are_the_architecture():
    found = {folder.name for folder in (REPOSITORY / "scm").iterdir() if folder.is_dir()}
    assert found - {"__pycache__"} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_before_it(package):
    allowed = ORDER[: ORDER.index(package) + 1]
    for module, names in IMPORTS.items():
        if module.startswith(f"scm.{package}."):
            for name in names:
                parts = name.split(".")
                assert parts[0] != "scm" or parts[1] in allowed, f"{module} imports {name}"
                assert not (package == "method" and name.startswith("scm.nets")), module


def test_no_circle():
    graph = {
        module: {own(name) for name in names} - {module, ""} for module, names in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_nobody_instantiates():
    """hydra.utils.instantiate calls whatever a config names; `scm.config.allow` asks first."""
    assert not [module for module, names in IMPORTS.items() if "hydra.utils.instantiate" in names]


def test_library_code_never_sees_a_composed_config():
    for module, names in IMPORTS.items():
        if not f"{module}.".startswith(KNOWS_HYDRA):
            assert not any(name.split(".")[0] in ("omegaconf", "hydra") for name in names), module


@pytest.mark.parametrize(
    "module", ["run", "scm.config.compose", "scm.storage.folder", "scm.core.distributed"]
)
def test_no_torch_before_the_work_starts(module):
    """--help and tab completion answer at once: torch alone takes seconds to import."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
