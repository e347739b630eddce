"""Does it come back? Attacks on a model that has unlearned, one a file.

NAME.py is an attack that `gru-fast attack` knows. It has

HELP                        one line for the list of attacks
Options                     a dataclass of its options
cost(options, target)       what it will take, in words, before anything is loaded
settings(options, target)   what the findings depend on, JSON, beside the models and the benchmark
run(options, target)        the findings: a gru_fast.attacks.parts.outcome.Outcome; every process calls it
report(summary) -> str      what there is to say beside the table of the findings; "" if nothing

What it needs of the model, of those beside it and of the benchmark is a gru_fast.attacks.parts.target.Target. Every
finding is a score before and after, of the model and, where they are there, of the original and the retrained one.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from gru_fast.runs.messages import nearest

_ORDER = ("quantize", "relearn", "sample", "extract")  # as they are done and shown; others come after them


def names() -> list[str]:
    """The attacks there are, in the order in which they are done."""
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg}
    return [*(name for name in _ORDER if name in found), *sorted(found - {*_ORDER})]


def get(name: str) -> Any:
    """The module of an attack. Unknown names: ValueError with those there are."""
    if name not in names():
        raise ValueError(f'attacks: expected some of {", ".join(names())}, got "{name}"{nearest(str(name), names())}')
    return import_module(f"{__name__}.{name}")
