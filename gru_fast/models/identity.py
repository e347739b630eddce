"""Which model, and which sequence: hashes by which what was computed is found again, and told from another's."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from gru_fast.models.adapters import is_drawn_factor, is_zero_factor
from gru_fast.models.partitioned import shape_of, whole_of

_SAMPLES = 64  # elements of each parameter that a fingerprint looks at


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Hash of a model: name, shape, dtype and 64 evenly spaced elements of every parameter, as 32 hex digits.

    Tells models and training states apart at no cost; not made to find a single altered weight. New LoRA adapters
    are left out: their random half differs from run to run and has no effect. Of a sharded model one parameter at a
    time is put together; every process must ask.
    """
    digest = hashlib.blake2b(digest_size=16)
    skip_adapters = has_new_adapters(model)
    for name, param in model.named_parameters():
        if skip_adapters and _is_lora(name):
            continue
        flat = whole_of(param).flatten()
        count = min(_SAMPLES, flat.numel())
        rows = torch.arange(count, device=flat.device) * max(flat.numel() - 1, 0) // max(count - 1, 1)
        digest.update(f"{name} {shape_of(param)} {param.dtype} ".encode())
        digest.update(flat[rows].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def has_new_adapters(model: nn.Module) -> bool:
    """Whether the model is LoRA that has no effect yet: nothing else is trainable, one factor of each pair is 0."""
    if not (hasattr(model, "peft_config") and hasattr(model, "disable_adapter")):
        return False
    for name, param in model.named_parameters():
        if not _is_lora(name):
            if param.requires_grad:
                return False
            continue
        if is_zero_factor(name):
            if bool(whole_of(param).any()):
                return False
        elif not is_drawn_factor(name):  # other kinds (DoRA's magnitudes) are not looked into
            return False
    return True


def _is_lora(name: str) -> bool:
    return "lora_" in name
