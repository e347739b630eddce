"""Memory: what fits, and the peak that one call needs on top of what is there."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def _libc() -> ctypes.CDLL | None:
    is_glibc = platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL("libc.so.6") if is_glibc else None


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep what is freed, so that no form pays page faults for its temporaries. False elsewhere.

    This favours the forms that allocate: with malloc's defaults they are slower than shown.
    """
    libc = _libc()
    return libc is not None and libc.mallopt(_M_MMAP_MAX, 0) == 1 and libc.mallopt(_M_TRIM_THRESHOLD, -1) == 1


def release_freed_memory() -> None:
    """Hands what malloc kept back to the system."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device (None: unknown)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_bytes()


def host_bytes() -> int | None:
    """Memory of the host that can still be used (None: unknown)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def peak_extra(call: Callable[[], None], device: torch.device) -> int | None:
    """Bytes by which memory in use rises at most while `call` runs. None where the system does not tell.

    CPU: the process's resident high-water mark, reset before the call (Linux). It counts touched pages, so a few
    hundred KB may come from elsewhere. CUDA: the caching allocator's peak, exact.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    release_freed_memory()
    try:
        _CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        return None
