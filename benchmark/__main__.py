"""The command: `python -m benchmark --suite step`; prints a Markdown table, writes JSON."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmark import report
from benchmark.cases import FORMS, Workshop
from benchmark.suites import SUITES, Request
from benchmark.timing import memory_limit
from scm.config.compose import CONF
from scm.config.schema import Compile, Precision
from scm.core import machine, provenance
from scm.core.cli import Parser, check_file, mistakes_in_one_line
from scm.core.errors import UserError
from scm.core.files import write_json

EPILOG = """suites:
{suites}

examples:
  python -m benchmark --suite step --models unet --precisions bf16
  python -m benchmark --suite step --device cuda --compile default cuda_graphs --out gpu.json
  python -m benchmark --suite memory
  python -m benchmark --suite sampling -n 10000
  python -m benchmark --suite report -n 500 --rounds 3

On a CPU the step suite of all models takes long, and most of that is unet_mobile's: its naive step
needs about 20 GB at batch 128 in fp32. A case that fails is a row that says why."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    suites = "\n".join(f"  {name:10}{suite.question}" for name, suite in SUITES.items())
    p = Parser(
        prog="python -m benchmark",
        description="Measure cases side by side: each is warmed up, then all are timed in turn,\n"
        "round after round. Prints medians, quartiles and ratios to the diffusion step.",
        epilog=EPILOG.format(suites=suites),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    p.add_argument("--suite", choices=SUITES, default="step", help="default: %(default)s")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--models", nargs="+", choices=models, metavar="MODEL", help=", ".join(models))
    p.add_argument(
        "--precisions",
        nargs="+",
        choices=[precision.name for precision in Precision],
        help="default: fp32 and bf16 for step, else what the hardware is faster with",
    )
    p.add_argument("--batch-sizes", nargs="+", type=int, metavar="B", help="default: the suite's")
    p.add_argument(
        "--tangents",
        nargs="+",
        choices=list(FORMS),
        default=list(FORMS),
        help="how sct and scd compute dF/dt: naive is one torch.func.jvp with gradients on "
        "(default: all)",
    )
    p.add_argument(
        "--compile",
        nargs="*",
        choices=[mode.name for mode in Compile],
        help="step: time compiled training steps beside the eager ones (alone: default)",
    )
    p.add_argument("--rounds", type=int, default=7, help="samples per case (default: %(default)s)")
    p.add_argument("-n", type=int, help="sampling: images (10000); report: runs (500)")
    p.add_argument(
        "--overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="changes to every configuration, as for run.py: trainer.threads=1",
    )
    p.add_argument("--out", type=Path, metavar="FILE.json", help="write samples and settings")
    return p


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, print, write; a user's mistake is one line and exit code 2."""
    arguments = parser().parse_args(argv)
    with mistakes_in_one_line():
        _check(arguments)
        print(run(arguments))


def run(arguments: argparse.Namespace) -> str:
    """The table of what `arguments` (of `parser`) ask for, with the machine in its last line."""
    device = machine.find_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder, memory_limit(device):
        workshop = Workshop(device.type, arguments.overrides, Path(folder))
        suite = SUITES[arguments.suite](_request(arguments, workshop, device))
        first = next(suite.labels())
        config = workshop.composed(first, "objective=diffusion")  # a mistake shows at once
        machine.prepare(config.trainer.threads)
        rows = suite.rows()
    measured_on = {
        "device": machine.device_name(device),
        "versions": provenance.versions(),
        "commit": provenance.git_commit(),
    }
    if arguments.out:
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in vars(arguments).items()}
        write_json(arguments.out, {"settings": settings, "machine": measured_on, "rows": rows})
    return f"{report.markdown(rows)}\n\n{_line(measured_on)}"


def _line(measured_on: dict[str, Any]) -> str:
    return f"{measured_on['device']}; torch {torch.__version__}; commit {measured_on['commit']}"


def _request(arguments: argparse.Namespace, workshop: Workshop, device: torch.device) -> Request:
    modes = arguments.compile
    return Request(
        workshop=workshop,
        device=device,
        models=arguments.models,
        precisions=[Precision[name] for name in arguments.precisions or ()] or None,
        batch_sizes=arguments.batch_sizes,
        forms=arguments.tangents,
        compile_modes=["default"] if modes == [] else modes or [],
        rounds=arguments.rounds,
        n=arguments.n,
    )


def _check(arguments: argparse.Namespace) -> None:
    counts = {"--rounds": [arguments.rounds], "-n": [] if arguments.n is None else [arguments.n]}
    counts["--batch-sizes"] = arguments.batch_sizes or []
    for option, values in counts.items():
        if min(values, default=1) < 1:
            raise UserError(f"{option} {min(values)}: must be at least 1")
    if arguments.compile is not None and arguments.suite != "step":
        raise UserError(f"--compile: not for --suite {arguments.suite}; use --suite step")
    check_file(arguments.out, overwrite=True)


if __name__ == "__main__":
    main()
