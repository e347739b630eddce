"""Modules under their names until 0.1, for one version: importing one warns, and gives what is at its new place."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    f"gru_fast.{old}": tuple(f"gru_fast.{new}" for new in places.split())
    for old, places in {
        "benchmarks.extra": "evaluation.extra",
        "benchmarks.muse_eval": "benchmarks.muse.evaluate",
        "benchmarks.record_folder": "evaluation.record_folder",
        "benchmarks.rows": "data.rows",
        "benchmarks.scoring": "evaluation.scoring evaluation.generation evaluation.subject",
        "benchmarks.summaries": "evaluation.summaries",
        "benchmarks.templates": "data.templates",
        "benchmarks.tofu_eval": "benchmarks.tofu.evaluate",
        "benchmarks.wmdp_eval": "benchmarks.wmdp.evaluate",
        "cli.options": "options.flags",
        "ema": "core.ema",
        "info": "core.info",
        "native": "core.backends.native",
        "processes": "runs.processes",
        "rectification": "core.result",
        "rectify": "core.rectify",
        "sharding": "core.sharded.shards",
        "unlearn.checkpoint": "runs.checkpoint unlearn.gru_state",
        "unlearn.data": "data.sequences data.pairs",
        "unlearn.identity": "models.identity data.sequences",
    }.items()
}


class _Finder(MetaPathFinder, Loader):
    """Asked last, for what is at no place any more."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        places = MOVED[module.__name__]
        # The frames of importlib are left out of the count.
        warnings.warn(
            f"{module.__name__}: import from {' and '.join(places)}, where it is now", DeprecationWarning, stacklevel=2
        )
        for place in places:
            names = {name: value for name, value in vars(import_module(place)).items() if not name.startswith("__")}
            vars(module).update(names)


def install() -> None:
    """Makes the old names known to ``import``."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
