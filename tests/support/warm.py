"""Run by `commands.py`: a process that has imported the project forks a child for every command.

It reads one request a line, answers with the child's process id, and with its exit code at its end.
"""

import gc
import importlib
import json
import os
import runpy
import sys

from hydra.core.plugins import Plugins
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scm.__main__ import COMMANDS


def become(
    argv: list[str], path: list[str], environment: dict[str, str], stdout: str, stderr: str
) -> None:
    """Let this process be `python ARGV...`, with more folders to import from."""
    for number, path in enumerate((os.devnull, stdout, stderr)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.path[:0] = path
    os.environ.clear()
    os.environ.update(environment)
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def main() -> None:
    """Serve until the one who asks has gone. Figures stay blank: tests of pictures draw them."""
    FigureCanvasAgg.draw = FigureCanvasAgg.get_renderer
    for name in ("training.assemble", "commands.train", *(f"commands.{name}" for name in COMMANDS)):
        importlib.import_module(f"scm.{name}")
    del sys.modules["scm.__main__"]  # a command imports it anew
    Plugins.instance()  # looks through all that is installed
    gc.freeze()  # so that no child looks through all that it was given
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(**json.loads(line))
            return
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
