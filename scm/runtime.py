"""The machine: device, precision, threads, allocator, and what a metrics file says of them."""

import ctypes
import gc
import logging
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from scm.config import Device, Precision
from scm.errors import UserError

log = logging.getLogger(__name__)

LINUX = sys.platform == "linux"
GLIBC = platform.libc_ver()[0] == "glibc"
DEFAULT_THREADS = torch.get_num_threads()  # one per core, or OMP_NUM_THREADS
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "numpy")


def find_device(choice: Device) -> torch.device:
    """The device to train on. Raises UserError where the chosen one is not there."""
    there = {
        Device.cuda: torch.cuda.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    if choice is Device.auto:
        choice = next(device for device, is_there in there.items() if is_there)
    if not there[choice]:
        available = ", ".join(device.name for device, is_there in there.items() if is_there)
        raise UserError(f"trainer.device={choice.name}: not on this machine; there is: {available}")
    return torch.device(choice.name)


def find_dtype(choice: Precision, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it faster than float32, unless the choice is made."""
    if choice is Precision.auto:
        fast = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": _cpu_multiplies_bf16,
        }.get(device.type, lambda: False)()
        choice = Precision.bf16 if fast else Precision.fp32
    return torch.bfloat16 if choice is Precision.bf16 else torch.float32


def _cpu_multiplies_bf16() -> bool:
    flags = torch.backends.cpu.get_cpu_capability()
    if not flags.startswith("AVX512"):
        return False
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def prepare(threads: int | None) -> None:
    """Set threads, flush denormals, and keep freed memory: a user should not have to know."""
    torch.set_num_threads(threads or DEFAULT_THREADS)
    torch.set_flush_denormal(True)
    if GLIBC:  # else every activation is mapped and unmapped anew
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


GUARANTEES = {  # what the same command gives again, on the same machine and the same versions
    "cpu": "bit for bit with the same trainer.threads, as without it",
    "cuda": "bit for bit on the same GPU model, and any operation that cannot is an error",
    "mps": "no more than without it: torch has no deterministic kernels to choose there",
}


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """While entered, torch takes deterministic algorithms alone; afterwards its flags are back.

    CUBLAS_WORKSPACE_CONFIG stays set: cuBLAS has read it by then.
    """
    if not wanted:
        yield
        return
    log.info("trainer.deterministic: on %s, %s", device.type, GUARANTEES[device.type])
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def reset_peak_memory(device: torch.device) -> int:
    """Count the peak from here on, where the system can; returns what is held now, in bytes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX:
        if GLIBC:  # what building has freed, the heap still holds
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since the reset: allocated on a GPU, resident on a CPU (whole process)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if LINUX:  # not ru_maxrss, which a process inherits from the one that started it
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """`cuda: NVIDIA H100`, `cpu: AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{device.type}: {model}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def git_commit() -> str:
    """The commit of this code, `-dirty` where files differ, `unknown` outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        called = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return called.stdout.strip()
