"""Files are written whole or not at all, and what is wrong with one that is read is one line.

`reading` names a file that cannot be parsed; `refusals_named` names what the disk, its permissions
or the memory refuse, and what the user can do about it.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scm.core.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

CLONE = Path(__file__).resolve().parents[2]
# what ships beside the code: conf, data, pretrained; a wheel puts it under the prefix (setup.py)
REPOSITORY = CLONE if (CLONE / "conf").is_dir() else Path(sys.prefix) / "share" / "scm"
CONF = REPOSITORY / "conf"
WORK = CLONE if REPOSITORY == CLONE else Path()  # where `outputs` is
CACHE = WORK / "outputs" / ".cache"  # what can be computed anew
REMEDIES = {  # what the user can do about an OSError that is not a mistake of this code
    errno.ENOSPC: "free some space and repeat the command",
    errno.EDQUOT: "free some of your quota and repeat the command",
    errno.EFBIG: "raise the limit on the size of files and repeat the command",
    errno.EIO: "the disk fails: name a folder on another one",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.ENOTDIR: "a part of this path is a file; name another place",
    errno.EISDIR: "a folder; name a file",
    errno.EEXIST: "a file; name a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link that leads to itself; name another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


@contextmanager
def refusals_named() -> Iterator[None]:
    """Turn an OSError out of `REMEDIES` into a UserError that names file, reason and remedy.

    So is a lack of memory, as Python, torch on a CPU and torch on a GPU say it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise _refusal(error, error.filename or "a file") from error
    except (MemoryError, RuntimeError) as error:
        asked = re.search(r"ried to allocate [\d.]+ \w+", str(error))
        if not (asked or isinstance(error, MemoryError)):
            raise
        raise UserError(
            f"out of memory{f' (t{asked[0]})' if asked else ''}; use smaller batches, with "
            "trainer.micro_batch_size for the same result, or a smaller model"
        ) from error


@contextmanager
def reading(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Make one UserError of whatever fails in a block that parses `path`, and does nothing else.

    "PATH: not WHAT (the error's first line); REMEDY". A UserError keeps its words, after the path.
    """
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise ValueError("not a file")
        yield
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise _refusal(error, path) from error
        said = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, KeyError):  # which says the key alone
            said = f"it has no {error}"
        ending = f"; {remedy}" if remedy else ""
        raise UserError(f"{path}: not {what} ({said}){ending}") from error


def _refusal(error: OSError, path: str | Path) -> UserError:
    return UserError(f"{path}: {error.strerror}; {REMEDIES[error.errno or 0]}")


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """An OSError out of a write or a sync does not know of which file: this adds it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was: a crash leaves at most a `.tmp` file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _about(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the rename itself reaches the disk with its folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def expanded(path: str | Path) -> Path:
    """`path` with its `~` or `~user` as that home; UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home folder; write the path out") from None


def found(path: str | Path) -> Path:
    """`path` where it exists, else the same within the repository: so `pretrained/` is reached from
    every folder."""
    path = expanded(path)
    shipped = REPOSITORY / path
    return shipped if not path.exists() and shipped.exists() else path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed; False where another one has it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """While entered, this process holds the lock of this name; False where another one does."""
    with open(path, "a") as file:
        yield lock(file)


def append_line(path: Path, line: str) -> None:
    """Add one line to a text file; a crash may leave a part of it, without its end."""
    with _about(path), open(path, "ab") as file:
        file.write(f"{line}\n".encode())
