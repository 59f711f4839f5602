"""Files that are whole or absent: written beside their place, flushed, then renamed.

Knows nothing of what the bytes mean.
"""

import json
import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was: a crash leaves at most a `.tmp` file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def found(path: str | Path) -> Path:
    """`path` where it exists, else the same within the repository: so `pretrained/` is reached from
    every folder."""
    path = Path(path).expanduser()
    shipped = REPOSITORY / path
    return shipped if not path.exists() and shipped.exists() else path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())
