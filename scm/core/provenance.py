"""What a result depends on beside its config: the code's commit and the packages' versions."""

import platform
import subprocess  # nosec B404
from importlib.metadata import version

from scm.core.files import REPOSITORY

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def git_commit() -> str:
    """The commit of this code, `-dirty` where files differ, `unknown` outside a checkout."""
    try:
        called = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return called.stdout.strip()
