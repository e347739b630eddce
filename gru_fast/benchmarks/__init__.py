"""Benchmarks, one module each: their rows, their prompts, their evaluation.

NAME.py beside NAME_eval.py is a benchmark that `gru-fast unlearn --benchmark NAME` knows. It has

Options                        a dataclass of its options; among them ``benchmark``, its own name, and ``split``
SPLITS, retain_of(split)       what can be forgotten, and what is kept beside it
title(options) -> str          names what is forgotten, for a run's folder
unlearning(options, tokenizer, template, parts, seed) -> UnlearnDataset

NAME_eval.py is `gru-fast eval NAME`, see gru_fast/cli/commands/eval.py. Nothing else needs to know of a new one.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any


def names() -> list[str]:
    """The benchmarks a model can be unlearned on, sorted."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name for name in found if f"{name}_eval" in found)


def get(name: str) -> Any:
    """The module of a benchmark. Unknown names: ValueError with those there are."""
    if name not in names():
        raise ValueError(f'benchmark: expected one of {", ".join(names())}, got "{name}"')
    return import_module(f"{__name__}.{name}")
