"""What a table of numbers must say about where it comes from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

import gru_fast


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Commit of this tree, `+` behind it where files differ from it; without git what GRU_FAST_COMMIT says."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=where, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("GRU_FAST_COMMIT", "unknown")


def describe(device: torch.device, *, keeps_freed_memory: bool) -> dict[str, object]:
    """Machine, commit and versions: printed above every table and stored in every JSON."""
    about: dict[str, object] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "device": device_name(device),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} logical",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gru_fast": gru_fast.build_info(),
        "malloc": "keeps freed memory (best case for forms that allocate)" if keeps_freed_memory else "default",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about["cuda"] = {
            "torch_cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        }
    return about


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def header(about: dict[str, object]) -> str:
    """The description as text, one fact a line."""
    return "\n".join(f"{key:>9}  {_as_text(value)}" for key, value in about.items())


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_as_text(each)}" for key, each in value.items() if each not in (None, "", [], {}))
    if isinstance(value, list):
        return "[" + "; ".join(map(_as_text, value)) + "]"
    return str(value)
