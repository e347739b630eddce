"""A training run in several processes, held to one process with the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launched
import numpy as np
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_data, save_model


def assert_follows(processes: Processes, folder: Path, world: int = 2, fsdp2: bool = False, **settings: Any) -> None:
    """Logs alike to 2e-5, e to 2e-5 of its norm, weights to 2e-5 of how far they have moved and one rounding of theirs.

    All processes end with the same weights.
    """
    found = processes.run(launched.trained, world, folder / "several", fsdp2, **settings)
    logs, weights, ema = launched.trained(folder / "one", **settings)
    assert len(logs) == 3
    assert any(entry.get("conflict", 1.0) for entry in logs), "a test of the projection needs a conflict"
    for others, *_ in found:
        assert len(others) == 3
        for entry, expected in zip(others, logs, strict=True):
            assert set(entry) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(entry[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    for other in found[1:]:
        assert all(bool((a == b).all()) for a, b in zip(other[1], found[0][1], strict=True))
    start = launched.weights(launched.model(settings.get("lora", False), settings.get("four_bit", "")))
    for a, b, w in zip(found[0][1], weights, start, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 2.0**-23 * float(b.norm())
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-8


def arguments(folder: Path, output: str, accumulated: int) -> list[str]:
    """Of gru-fast unlearn, with a model and data in ``folder``."""
    if not (folder / "model").exists():
        save_data(folder / "data")
        save_model(folder / "model")
    places = ["--model", str(folder / "model"), "--data", str(folder / "data"), "--output-dir", str(folder / output)]
    steps = ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", str(accumulated), "--use-cpu"]
    chosen = ["--method", "npo_gd", "--rectify", "--optim", "sgd", "--learning-rate", "0.05"]
    return ["unlearn", "--disable-tqdm", "--num-train-epochs", "1", *places, *steps, *chosen]


def assert_same_models(folder: Path) -> None:
    """The runs "several" and "one" have ended with the same weights, but for rounding."""
    start, several, one = (load_file(folder / name / "model.safetensors") for name in ("model", "several", "one"))
    assert several.keys() == one.keys()
    for name, weight in one.items():
        moved = float((weight - start[name]).norm())
        assert float((several[name] - weight).norm()) <= 2e-5 * moved + 2.0**-23 * float(weight.norm())
    assert any(bool((one[name] != start[name]).any()) for name in one)
