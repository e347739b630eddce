"""What this build of gru_fast is and what it runs on: the content of `gru-fast info`."""

from __future__ import annotations

from typing import Any

import torch

from gru_fast.core.backends import backend_name
from gru_fast.core.load import core


def build_info() -> dict[str, Any]:
    """Versions, the vector level in use, the CUDA build or the reason why there is none, and every device with the
    backend that serves it ("native": this package's kernels; "reference": plain PyTorch).

    >>> sorted(build_info())
    ['build_type', 'compiler', 'cpu', 'cuda', 'devices', 'torch', 'version']
    """
    built = core.build_info()
    return {
        "version": built["version"],
        "compiler": built["compiler"],
        "build_type": built["build_type"],
        "torch": torch.__version__,
        "cpu": {
            "vector_level": built["vector_level"],
            "available_levels": built["available_levels"],
            "threads": torch.get_num_threads(),
            "thread_source": built["thread_source"],
        },
        "cuda": {
            "version": built["cuda_version"] or None,
            "architectures": [name for name in built["cuda_architectures"].split(",") if name],
            "reason": built["no_cuda_reason"] or None,  # why there are no CUDA kernels
            "problem": (core.cuda_problem() or None) if core.HAS_CUDA else None,  # why they cannot run here
            "device_count": built["cuda_device_count"],  # as the CUDA linked into the kernels sees them
        },
        "devices": _devices(),
    }


def _devices() -> list[dict[str, str]]:
    found = [{"device": "cpu", "name": "CPU", "backend": backend_name(torch.device("cpu"))}]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return found
    for index in range(torch.accelerator.device_count()):
        device = torch.device(accelerator.type, index)
        name = torch.cuda.get_device_name(index) if device.type == "cuda" else accelerator.type
        found.append({"device": str(device), "name": name, "backend": backend_name(device)})
    return found
