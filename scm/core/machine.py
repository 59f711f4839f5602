"""The machine: device, precision, threads, allocator, and what a metrics file says of them."""

import ctypes
import gc
import logging
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from scm.core.errors import UserError

log = logging.getLogger(__name__)

LINUX = sys.platform == "linux"
GLIBC = platform.libc_ver()[0] == "glibc"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DEFAULT_THREADS = torch.get_num_threads()  # one per core, or OMP_NUM_THREADS


def find_device(choice: str) -> torch.device:
    """The device named `cpu`, `cuda`, `mps`, or `auto`: the first of cuda, mps, cpu that is there.

    Raises UserError where the chosen one is not there.
    """
    there = ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if choice != "auto" and choice not in there:
        available = ", ".join(there)
        raise UserError(f"trainer.device={choice}: not on this machine; there is: {available}")
    return torch.device(there[0] if choice == "auto" else choice)


def find_dtype(choice: str, device: torch.device) -> torch.dtype:
    """`fp32` or `bf16`; `auto`: bf16 where the hardware multiplies it faster than float32."""
    fast = choice == "bf16"
    if choice == "auto" and device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif choice == "auto" and device.type == "cpu":
        used = torch.backends.cpu.get_cpu_capability()
        fast = used.startswith("AVX512") and bool(re.search("(avx512|amx)_bf16", _cpuinfo()))
    return torch.bfloat16 if fast else torch.float32


def _cpuinfo() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def prepare(threads: int | None) -> None:
    """Set threads, flush denormals, and keep freed memory: a user should not have to know."""
    torch.set_num_threads(threads or DEFAULT_THREADS)
    torch.set_flush_denormal(True)
    if GLIBC:  # else every activation is mapped and unmapped anew
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = before


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
    named = re.search(r"^model name\s*: (.+)", _cpuinfo(), re.MULTILINE)
    model = named[1] if named else platform.processor() or platform.machine()
    return f"{device.type}: {model}, {torch.get_num_threads()} threads"
