"""How far training has moved the weights, from model folders alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gru_fast.models.distance import distance


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_by_hand(tmp_path: Path) -> None:
    """|w0| = sqrt(9 + 16 + 144) = 13; moved by (1, 0, 2) and nothing: sqrt 5."""
    a, b = torch.tensor([3.0, 4.0, 12.0]), torch.tensor([0.0])
    before = save(tmp_path / "before", a=a, b=b)
    after = save(tmp_path / "after", a=a + torch.tensor([1.0, 0.0, 2.0]), b=b)
    assert distance(before, after) == pytest.approx(math.sqrt(5) / 13, rel=1e-15)
    assert distance(before, before) == 0.0


def test_shards_and_dtypes(tmp_path: Path) -> None:
    """Of an index its shards; bfloat16 against float32."""
    before = save(tmp_path / "before", a=torch.tensor([3.0]), b=torch.tensor([4.0]))
    after = tmp_path / "after"
    after.mkdir()
    save_file({"a": torch.tensor([3.0], dtype=torch.bfloat16)}, after / "1.safetensors")
    save_file({"b": torch.tensor([5.0], dtype=torch.bfloat16)}, after / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (after / "model.safetensors.index.json").write_text(json.dumps(index))
    assert distance(before, after) == pytest.approx(1 / 5, rel=1e-15)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = torch.ones(3)
    folder = save(tmp_path / "a", a=a)
    assert distance(folder, save(tmp_path / "names", b=a)) is None
    assert distance(folder, save(tmp_path / "shapes", a=torch.ones(2))) is None
    assert distance(folder, save(tmp_path / "more", a=a, b=a.clone())) is None
    assert distance(Path("org/name-on-the-hub"), folder) is None
    assert distance(save(tmp_path / "zero", a=0 * a), folder) is None
    (folder / "adapter_config.json").write_text("{}")
    assert distance(folder, folder) is None
