"""Run folders as the commands leave them, with whatever numbers a test wants, and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gru_fast import runs

Log = Sequence[Mapping[str, Any]]


def save_run(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any] | None, log: Log = ()) -> Path:
    """A run folder; ``result`` None: it has not finished, and its log is that of a checkpoint."""
    runs.start(folder, yaml.safe_dump({"output_dir": str(folder), **config}))
    state = {"log_history": [dict(row) for row in log]}
    if result is not None:
        runs.write_json(folder / "run.json", result)
        runs.write_json(folder / "trainer_state.json", state)
    elif log:
        runs.write_json(folder / f"checkpoint-{log[-1]['step']}" / "trainer_state.json", state)
    return folder


def unlearned(folder: Path, method: str = "ga", rectify: bool = False, log: Log = (), **config: Any) -> Path:
    """A finished run of `gru-fast unlearn` on forget05."""
    facts = {"split": "forget05", "benchmark": "tofu"}
    options = {**facts, "model": "full", "method": method, "rectify": rectify, "gamma": 0.8, **config}
    result = {**facts, "steps": 31, "seconds_per_step": 0.5, "skipped": 1, "degenerate": 2}
    return save_run(folder, options, result, log)


def finetuned(folder: Path, subset: str = "full") -> Path:
    """A finished run of `gru-fast finetune`."""
    facts = {"benchmark": "tofu", "subset": subset, "model": "base"}
    return save_run(folder, facts, {**facts, "steps": 625, "seconds_per_step": 1.0, "skipped": 0, "degenerate": 0})


def evaluated(folder: Path, utility: float | None, log_p: float | None, split: str = "forget05") -> Path:
    """``folder`` with an evaluation on TOFU; ``log_p`` None: without a retrained model."""
    quality = None if log_p is None else {"p": 0.5, "log_p": log_p, "statistic": 0.25, "n": 4}
    summary = {
        "benchmark": "tofu",
        "split": split,
        "model_utility": utility,
        "forget_quality": quality,
        "components": {"retain_prob": 0.75, "retain_rougeL_recall": 0.625},
        "forget": {"prob": 0.125, "rougeL_recall": 0.25, "truth_ratio_min": 0.5},
        "num_rows": {"forget": 4},
        "seconds": 3.0,
        "settings": {"max_rows": 300, "truth_ratio": "geometric"},
    }
    runs.write_json(folder / "eval" / f"tofu-{split}" / "summary.json", summary)
    return folder


def steps_log(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A log with a row a step, from 1, of the quantities in ``values``."""
    count = len(next(iter(values.values())))
    return [{"step": i + 1, **{name: series[i] for name, series in values.items()}} for i in range(count)]
