"""How far training has moved the weights of a model, from its files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gru_fast.models.files import weight_files


def distance(before: Path, after: Path) -> float | None:
    """|w - w0| / |w0|, Euclidean norms over all weights of two model folders; a tensor at a time, in float64.

    None where they cannot be compared so: no safetensors in one of them (a name on the hub, GGUF, an adapter alone), or
    other names or shapes.
    """
    with ExitStack() as stack:
        theirs, ours = (_tensors(folder, stack) for folder in (before, after))
        if not ours or ours.keys() != theirs.keys():
            return None
        moved = whole = 0.0
        for name, file in ours.items():
            start, end = theirs[name].get_tensor(name).double(), file.get_tensor(name).double()
            if start.shape != end.shape:
                return None
            moved += float((end - start).square().sum())
            whole += float(start.square().sum())
    return math.sqrt(moved / whole) if whole > 0 else None


def _tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file of each tensor."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in _files(folder):
        file = stack.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        yield from (path for path in weight_files(folder) if path.suffix == ".safetensors")
