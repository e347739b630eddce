"""A training run in several processes, held to one process with the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import launched
import numpy as np
import torch
from processes import Processes
from safetensors.torch import load_file
from tofu_folders import save_data, save_model
from torch import Tensor


def assert_follows(processes: Processes, folder: Path, world: int = 2, fsdp2: bool = False, **settings: Any) -> None:
    """Three steps in ``world`` processes as in one, see :func:`assert_alike`."""
    found = processes.run(launched.trained, world, folder / "several", fsdp2, **settings)
    assert_alike(found, launched.trained(folder / "one", **settings), start(settings))


def start(settings: Mapping[str, Any]) -> list[Tensor]:
    """The weights that :func:`launched.trained` begins with."""
    return launched.weights(launched.model(**{name: settings[name] for name in launched.OF_MODEL if name in settings}))


def assert_alike(
    found: Sequence[launched.Trained], alone: launched.Trained, start: Sequence[Tensor], conflict: bool = True
) -> None:
    """Logs alike to 2e-5, e to 2e-5 of its norm, weights to 2e-5 of how far they have moved and one rounding of theirs.

    All processes end with the same weights. ``found``: of each process, ``alone``: of the one, ``start``: see above.
    """
    logs, weights, ema = alone
    assert len(logs) == 3
    if conflict:
        assert any(entry.get("conflict", 1.0) for entry in logs), "a test of the projection needs a conflict"
    for others, *_ in found:
        assert len(others) == 3
        for entry, expected in zip(others, logs, strict=True):
            assert set(entry) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(entry[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    assert_same_steps(found, weights, ema, start)


def assert_same_steps(
    found: Sequence[launched.Trained], weights: Sequence[Tensor], ema: Sequence[Tensor], start: Sequence[Tensor]
) -> None:
    """The same of weights and e alone."""
    for other in found[1:]:
        assert all(bool((a == b).all()) for a, b in zip(other[1], found[0][1], strict=True))
    for a, b, w in zip(found[0][1], weights, start, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 2.0**-23 * float(b.norm())
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-8


def assert_roughly_alike(
    found: Sequence[launched.Trained], weights: Sequence[Tensor], ema: Sequence[Tensor], start: Sequence[Tensor]
) -> None:
    """What 16 bits keep of them: e to 5% of its norm, weights to 10% of how far all of them have moved."""
    for other in found[1:]:
        assert all(bool((a == b).all()) for a, b in zip(other[1], found[0][1], strict=True))
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a.float() - b.float()).norm()) <= 0.05 * float(b.float().norm()) + 1e-3
    moved = torch.cat([(b.float() - w.float()).flatten() for b, w in zip(weights, start, strict=True)])
    apart = torch.cat([(a.float() - b.float()).flatten() for a, b in zip(found[0][1], weights, strict=True)])
    assert float(apart.norm()) <= 0.1 * float(moved.norm())


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
