"""The difference between a model before and after a request, kept so that the original comes back bit for bit.

    delta = bits(before) XOR bits(after)          of every weight, as integers of its size

A difference of floating-point numbers, added again, would be rounded; exclusive or is its own inverse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.forget import manifest
from gru_fast.unlearn.task_vector import load_tensors, save_tensors

DELTA = "delta.safetensors"
_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALLER = (torch.bfloat16, torch.float16)


def save(folder: Path, before: nn.Module, after: nn.Module) -> None:
    """Writes ``delta.safetensors``: what is the same in both is left out.

    Args:
        before, after: models of one architecture and dtype.
    """
    there = dict(before.named_parameters())
    found: dict[str, Tensor] = {}
    for name, param in after.named_parameters():
        value = _bits(there[name].detach().cpu()) ^ _bits(param.detach().cpu())
        if bool(value.any()):
            found[name] = value
    save_tensors(folder / DELTA, found, {"weights": manifest.weights_hash(before)})


@torch.no_grad()
def restore_(model: nn.Module, folder: Path) -> None:
    """Makes the model of a run what it was before, in place.

    Raises:
        FileNotFoundError: no delta was kept. ValueError: the model is not that of the run, or what comes out is not the
            original to the bit; the model is then of no use.
    """
    file = folder / DELTA
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; gru-fast forget writes it with --keep-delta")
    found, about = load_tensors(file)
    params = dict(model.named_parameters())
    odd = [name for name, value in found.items() if name not in params or params[name].shape != value.shape]
    if odd:
        raise ValueError(f'{file}: has "{odd[0]}" of shape {tuple(found[odd[0]].shape)}, and the model has not')
    for name, value in found.items():
        _bits(params[name].data).bitwise_xor_(value.to(params[name].device))
    if manifest.weights_hash(model) != about["weights"]:
        raise ValueError(
            f"{file}: what comes out is not the original model: the model in the folder was changed after the run, or "
            "loaded in another dtype"
        )


@torch.no_grad()
def in_its_dtype(model: Any) -> Any:
    """A model in 16 bits where that changes no weight: as it was, if it was loaded from 16 bits. In place."""
    params = list(model.parameters())
    for dtype in _SMALLER:
        if all(param.dtype == torch.float32 and torch.equal(param, param.to(dtype).float()) for param in params):
            return model.to(dtype)
    return model


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(_AS_INTEGERS[value.element_size()])
