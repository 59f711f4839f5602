"""What the commands share: a mistake is one line on standard error, and exit code 2."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from scm.core.errors import UserError
from scm.core.files import refusals_named


def fail(error: UserError | str) -> NoReturn:
    """One line on standard error, exit code 2; a stranger's value commands no terminal in it."""
    line = " ".join(str(error).split())
    print("error:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    sys.exit(2)


def interrupted() -> NoReturn:
    """End as a Ctrl-C ends a command that has nothing to save."""
    print("interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def check_count(option: str, value: int | None, least: int, most: int) -> None:
    """Raise UserError where a number on the command line is too small or senselessly large."""
    if value is not None and not least <= value <= most:
        raise UserError(f"{option} {value}: must be at least {least} and at most {most:,}")


def check_file(path: Path | None, *, overwrite: bool) -> None:
    """Raise UserError where a result could not be written to `path`, before the work for it."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; name another file, or add --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    as_now = os.access in os.supports_effective_ids
    if not os.access(path.parent, os.W_OK, effective_ids=as_now):
        raise UserError(f"{path}: {path.parent} cannot be written; name another folder")


class Parser(argparse.ArgumentParser):
    """A command line that answers a mistake in one line, without its whole usage."""

    def error(self, message: str) -> NoReturn:
        """Name the argument, and where the allowed ones stand."""
        fail(f"{message}; `{self.prog} --help` shows what there is")


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Let a UserError, or what the disk refuses, end the process as `fail` does."""
    try:
        with refusals_named():
            yield
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()


def command(
    parser: argparse.ArgumentParser,
    task: Callable[[argparse.Namespace], None],
    argv: list[str] | None,
) -> None:
    """Parse and do the task, its log on standard error; a mistake is one line and exit code 2."""
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with mistakes_in_one_line():
        task(arguments)
