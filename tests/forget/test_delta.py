"""A request is taken back to the bit, in every dtype, and nothing else is passed off as the original."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import llama

from gru_fast.forget import delta


def changed(model: object) -> object:
    """A model trained a little: one weight is left as it is, one becomes NaN, one a denormal number."""
    params = dict(model.named_parameters())  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, param in params.items():
            if "norm" not in name:
                param.add_(torch.randn_like(param) * 1e-3)
        first = params["model.embed_tokens.weight"]
        first[0, 0], first[0, 1], first[0, 2] = float("nan"), 1e-42, -0.0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_original_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    before, after = llama(seed=3, dtype=dtype), changed(llama(seed=3, dtype=dtype))
    delta.save(tmp_path, before, after)
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)  # type: ignore[attr-defined]
    delta.restore_(after, tmp_path)  # type: ignore[arg-type]
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for (name, ours), theirs in zip(after.named_parameters(), before.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(ours.view(size), theirs.view(size)), name


def test_what_did_not_change_takes_no_room(tmp_path: Path) -> None:
    delta.save(tmp_path, llama(), changed(llama()))
    with safe_open(tmp_path / delta.DELTA, framework="pt") as file:
        assert not any("norm" in name for name in file.keys())  # noqa: SIM118
        assert len(list(file.keys())) > 10


def test_another_model_is_not_taken_for_the_run(tmp_path: Path) -> None:
    delta.save(tmp_path, llama(), changed(llama()))
    with pytest.raises(ValueError, match="what comes out is not the original model"):
        delta.restore_(llama(seed=9), tmp_path)
    with pytest.raises(ValueError, match=r'has "lm_head\.weight" of shape '):
        delta.restore_(llama(hidden_size=16, intermediate_size=24), tmp_path)
    with pytest.raises(FileNotFoundError, match="gru-fast forget writes it with --keep-delta"):
        delta.restore_(llama(), tmp_path / "elsewhere")


def test_weights_of_16_bits_are_given_back_in_16_bits() -> None:
    halves = llama(dtype=torch.bfloat16).float()
    assert next(delta.in_its_dtype(halves).parameters()).dtype == torch.bfloat16
    assert next(delta.in_its_dtype(llama()).parameters()).dtype == torch.float32
