"""Benchmarks, a folder each: their rows, their prompts, their evaluation.

NAME/__init__.py, from NAME/rows.py, is a benchmark that `gru-fast unlearn --benchmark NAME` knows. It has

Options                        a dataclass of its options; among them ``benchmark``, its own name, and ``split``
SPLITS, retain_of(split)       what can be forgotten, and what is kept beside it
title(options) -> str          names what is forgotten, for a run's folder
default_lengths(options)       {option: tokens} of lengths that were not chosen: a model may have fewer positions
unlearning(options, tokenizer, template, parts, seed) -> UnlearnDataset
RETAIN_SETS                    optional: further parts of ``unlearning``, retain sets of their own
wordings(options)              optional, for attacks: questions to forget in other words, {name: [{question, asked}]}

NAME/evaluate.py is `gru-fast eval NAME`. It has

HELP                            one line for the list of benchmarks
Options                         a dataclass: its flags
defaults_of_run(config)         values for them that the configuration of the model's run gives
needs_model(options)            False: the numbers come from logs
writes(options)                 optional: whether an output folder is needed where no model is
title(options)                  names the evaluation, and its folder in the model's
run(options, subject) -> dict   the summary (a gru_fast.evaluation.subject.Subject, which loads the model if need be)
wanted(options, asked) -> dict  the settings of a summary that answers the options
report(summary) -> str          it in words
columns(summary) -> dict        its numbers by heading, for `gru-fast report`
PLANE                           two of the headings, retention and removal: {heading: which way is better}
KNOWLEDGE                       headings of what is high where the forget set is known, for attacks; by default removal

Nothing else needs to know of a new folder. One without rows.py can be evaluated on, not unlearned.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

_ROWS, _EVALUATION = "rows", "evaluate"  # modules of a benchmark's folder


def names() -> list[str]:
    """The benchmarks a model can be unlearned on, sorted."""
    return _that_have(_ROWS)


def get(name: str) -> Any:
    """The module of a benchmark. Unknown names: ValueError with those there are."""
    if name not in names():
        raise ValueError(f'benchmark: expected one of {", ".join(names())}, got "{name}"')
    return import_module(f"{__name__}.{name}")


def evaluations() -> list[str]:
    """The benchmarks a model can be evaluated on, sorted."""
    return _that_have(_EVALUATION)


def evaluation(name: str) -> Any:
    """The module of a benchmark's evaluation. Unknown names: ValueError with those there are."""
    if name not in evaluations():
        raise ValueError(f'benchmark: expected one of {", ".join(evaluations())}, got "{name}"')
    return import_module(f"{__name__}.{name}.{_EVALUATION}")


def _that_have(part: str) -> list[str]:
    """The benchmarks with a module of that name in their folder, which is not imported for it."""
    folders = (module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    paths = {name: [f"{place}/{name}" for place in __path__] for name in folders}
    return sorted(name for name, path in paths.items() if part in {m.name for m in pkgutil.iter_modules(path)})
