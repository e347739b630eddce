"""The largest resident size of this process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def reset_resident_peak() -> None:
    """So that loading the model does not count; Linux alone can do it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_peak_bytes() -> int:
    """The largest resident size of this process since :func:`reset_resident_peak`; elsewhere, since its start."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
