"""The import direction: lower layers know nothing of higher ones, and the command starts fast."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# From the bottom up. A module imports from layers below its own, or from its own without a circle.
LAYERS = (
    ("scm", "scm.config", "scm.errors", "scm.files", "scm.cli", "scm.composing"),
    (
        "scm.rng",
        "scm.tags",
        "scm.trigflow",
        "scm.exact",
        "scm.schedules",
        "scm.weighting",
        "scm.idx",
        "scm.runfolder",
        "scm.runtime",
        "scm.distributed",
        "scm.progress",
        "scm.interrupts",
        "scm.validate",
        "scm.board",
        "scm.sweep",
        "scm.stats",
        "scm.svg",
        "scm.runs",
        "scm.compare",
        "scm.page",
        "scm.sheet",
    ),
    ("scm.dual", "scm.nets"),
    (
        "scm.tangent",
        "scm.objectives",
        "scm.samplers",
        "scm.data",
        "scm.ema",
        "scm.checkpoint",
        "scm.logger",
        "scm.meters",
        "scm.pictures",
        "scm.plots",
    ),
    ("scm.features", "scm.metrics"),
    (
        "scm.train",
        "scm.divergence",
        "scm.trajectories",
        "scm.toy",
        "scm.evaluator",
        "scm.judge",
        "scm.quality",
    ),
    ("scm.experiment",),
    ("scm.construct", "scm.build", "scm.assembly"),
    ("scm.guard",),
    (
        "scm.launch",
        "scm.callbacks",
        "scm.report",
        "scm.sample",
        "scm.diagnose",
        "scm.subjects",
        "scm.evaluate",
        "scm.results",
        "scm.export",
        "scm.features.__main__",
        "scm.benchmark",
    ),
    ("run",),
)
COMPOSE = ("scm.config", "scm.composing", "scm.guard", "scm.launch", "scm.callbacks")  # know Hydra
BUILD = ("scm.construct", "scm.build", "scm.assembly")
LAYER = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def sources() -> dict[str, Path]:
    """Module name -> file, for run.py and the whole package."""
    found = {"run": REPOSITORY / "run.py"}
    for path in sorted((REPOSITORY / "scm").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path) -> set[str]:
    """Every name that the file imports, also inside functions: "a.b" for `from a import b`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(base) if node.level else ""
            origin = ".".join(part for part in (start, node.module) if part)
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


SOURCES = sources()
IMPORTS = {module: imported(module, path) for module, path in SOURCES.items()}


def owner(name: str) -> str | None:
    """The project's own module that an imported name comes from: scm.data for scm.data.Batch."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


def layer(module: str) -> int:
    while module not in LAYER:
        parent = module.rpartition(".")[0]
        assert parent not in ("", "scm"), f"{module} has no layer: add it to LAYERS"
        module = parent
    return LAYER[module]


GRAPH = {
    module: {own for name in names if (own := owner(name)) not in (None, module)}
    for module, names in IMPORTS.items()
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downward(module):
    upward = sorted(own for own in GRAPH[module] if layer(own) > layer(module))
    assert not upward, f"{module} imports from a higher layer: {', '.join(upward)}"


def test_no_circle():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"scm.construct"}))
def test_only_construct_instantiates(module):
    """hydra.utils.instantiate calls whatever a config names: one guarded caller, no other."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {name.rpartition(".")[2] for name in IMPORTS[module]}
    assert not used & {"instantiate", "_instantiate2"}


@pytest.mark.parametrize(
    "module",
    sorted(set(SOURCES) - {*COMPOSE, *BUILD, "run"}),
)
def test_library_code_never_sees_a_config(module):
    assert not any(name.split(".")[0] in ("omegaconf", "hydra") for name in IMPORTS[module])


@pytest.mark.parametrize(
    "module", ["run", "scm.config", "scm.runfolder", "scm.distributed", "scm.report"]
)
def test_no_torch_before_the_work_starts(module):
    """--help and tab completion answer at once: torch alone takes seconds to import."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
