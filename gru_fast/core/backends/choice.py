"""Which backend serves which device."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gru_fast.core.backends import native, reference
from gru_fast.core.backends.passes import Passes, Rows

_INSTALL = "pip install --force-reinstall --no-deps ."
_warned_devices: set[str] = set()


def backend_name(device: torch.device) -> str:
    """``"native"`` or ``"reference"``: what serves tensors of ``device`` in this build."""
    return "native" if native.serves(device) else "reference"


def mend_cuda(torch_cuda: str | None = torch.version.cuda) -> str:
    """How to build kernels for the CUDA of this torch, whose driver is there. PyPI has no nvcc before CUDA 13."""
    if torch_cuda is None or int(torch_cuda.split(".")[0]) >= 13:
        return f"GRU_FAST_CUDA=pip {_INSTALL}"
    return (
        f"CUDACXX=/usr/local/cuda-{torch_cuda}/bin/nvcc GRU_FAST_CUDA=on {_INSTALL}, with CUDA's toolkit {torch_cuda}"
    )


def passes_for(device: torch.device, rows: Rows, stats: Tensor | None = None) -> Passes:
    """The passes over rows that lie on ``device``; warns once per device type where there are no kernels for it.

    ``stats``: of a step that goes on; made where None.
    """
    if native.serves(device):
        return native.NativePasses(rows, stats)
    warn_of_fallback(device)
    return reference.ReferencePasses(rows, stats)


def warn_of_fallback(device: torch.device) -> None:
    """Warns, once per device type, that this build has no kernels for it."""
    if native.serves(device) or device.type in _warned_devices:
        return
    _warned_devices.add(device.type)
    mend = "there are none for this device type yet"
    if device.type == "cuda" and native.HAS_CUDA and native.cuda_problem():
        mend = f"they cannot run here: {native.cuda_problem()}; for another CUDA, in a checkout: {mend_cuda()}"
    elif device.type == "cuda" and native.HAS_CUDA:
        major, minor = torch.cuda.get_device_capability(device)
        mend = f"build for it, in a checkout: CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={major}{minor} pip install ."
    elif device.type == "cuda":
        mend = f"see `gru-fast info`; to build them, in a checkout: {mend_cuda()}"
    warnings.warn(
        f"gru_fast has no compiled kernels for {device.type} tensors in this build and uses the slower pure "
        f"PyTorch backend; {mend}",
        RuntimeWarning,
        stacklevel=5,
    )
