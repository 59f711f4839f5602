"""The commands: `python -m scm COMMAND ...`."""

import importlib
import sys

from scm.core.cli import fail
from scm.core.neighbours import make_threads_yield

COMMANDS = {
    "train": "train one configuration, or a sweep: the same as `python run.py`",
    "sample": "draw samples of a trained model into a file",
    "evaluate": "measure samples against the real images",
    "results": "a Markdown table of evaluations",
    "diagnose": "tangents and consistency errors along trajectories",
    "report": "compare runs: tables, tests, charts, one page",
    "export": "ship a model: with its card, for the hub, as ONNX, for diffusers",
    "features": "train the classifier that judges samples",
}


def main() -> None:
    """Hand the rest of the command line to the command's own module."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m scm COMMAND ...; each answers --help\n")
        print("\n".join(f"  {command:10}{text}" for command, text in COMMANDS.items()))
        print("\n`python run.py --help` is about training and sweeps.")
    elif name not in COMMANDS:
        fail(f"{name}: no such command; there is: {', '.join(COMMANDS)}")
    elif name == "train":
        sys.argv = ["run.py", *rest]  # which Hydra reads, and names in its help
        importlib.import_module("scm.commands.train").launch()
    else:
        make_threads_yield()
        importlib.import_module(f"scm.commands.{name}").main(rest)


if __name__ == "__main__":
    main()
