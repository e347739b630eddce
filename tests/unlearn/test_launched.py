"""UnlearnTrainer in several processes, against one process with the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launched
import numpy as np
import pytest
import tiny
from processes import Processes


def assert_follows(processes: Processes, folder: Path, world: int = 2, **settings: Any) -> None:
    """Logs alike to 2e-5, weights to 2e-5 of how far they have moved, e to 2e-5 of its norm; all processes the same."""
    found = processes.run(launched.trained, world, folder / "several", **settings)
    logs, weights, ema = launched.trained(folder / "one", **settings)
    assert len(logs) == 3
    assert any(entry["conflict"] for entry in logs), "a test of the projection needs a conflict"
    for others, *_ in found:
        assert len(others) == 3
        for entry, expected in zip(others, logs, strict=True):
            for name in launched.STATISTICS:
                np.testing.assert_allclose(entry[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)
    for other in found[1:]:
        assert all(bool((a == b).all()) for a, b in zip(other[1], found[0][1], strict=True))
    start = launched.weights(tiny.llama())
    for a, b, w in zip(found[0][1], weights, start, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float((b - w).norm()) + 1e-8
    for a, b in zip(found[0][2], ema, strict=True):
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-8


@pytest.mark.parametrize("method", ["ga", "npo_gd", "npo_kl"])
def test_ddp(processes: Processes, tmp_path: Path, method: str) -> None:
    """Also with reference log-probabilities, a share of r in g, and a reference model."""
    assert_follows(processes, tmp_path, method=method)


def test_ddp_measures_too(processes: Processes, tmp_path: Path) -> None:
    assert_follows(processes, tmp_path, method="ga", rectify=False, monitor=True)
