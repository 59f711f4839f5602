"""What the commands share: a mistake is one line on standard error, and exit code 2."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from scm.errors import UserError
from scm.files import refusals_named


def fail(error: UserError | str) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


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
