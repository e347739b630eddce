"""Scores of one text: what they read of it, and the registry of them.

A metric is a function ``score(record) -> float`` of one text, registered in whatever file of this package it stands in.
There are two kinds. A measure is averaged over a set of texts. An attack tells texts that a model was trained on from
texts it has never seen, and is summed up by the AUC between the two sets (see :mod:`gru_fast.metrics.mia`).
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from gru_fast.runs.messages import as_identifier, nearest


@dataclass(frozen=True)
class TextRecord:
    """What a model makes of one text. Logarithms are natural; n is the number of label tokens, at least 1.

    A field that was not scored is None; a metric that needs it says so.

    Args:
        index: row in its set, from 0.
        log_probs: (n,) log p of each label token given all before it.
        correct: n characters, "1" where the token of highest probability is the label, else "0".
        vocab_means, vocab_variances: (n,) mean and variance of log p over the vocabulary under p itself, at each label
            token.
        zlib_bytes: length of the text of the label tokens in UTF-8 when compressed by zlib.
        gradient_norm: mean over parameter tensors of the L2 norm of the gradient of the mean loss.
        reference_loss: mean of -log p over the label tokens under another model.
        generation: what the model writes, where there is a prompt.
        clean: probability, by a classifier, that the generation is no gibberish.
    """

    index: int
    log_probs: tuple[float, ...] | None = None
    correct: str | None = None
    vocab_means: tuple[float, ...] | None = None
    vocab_variances: tuple[float, ...] | None = None
    zlib_bytes: int | None = None
    gradient_norm: float | None = None
    reference_loss: float | None = None
    generation: str | None = None
    clean: float | None = None


TextRecords = Mapping[str, Sequence[TextRecord]]  # set -> its records, by index
Score = Callable[[TextRecord], float]
_PER_TOKEN = ("log_probs", "correct", "vocab_means", "vocab_variances")
FIELDS = tuple(field.name for field in dataclasses.fields(TextRecord) if field.name != "index")


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Args:
        name: in ``--metrics`` and in summaries.
        help: one line; which way is which.
        fields: of a :class:`TextRecord` that it reads.
        is_attack: whether sets are compared by AUC, and not averaged.
        score: of one text.
    """

    name: str
    help: str
    fields: tuple[str, ...]
    is_attack: bool
    score: Score


_metrics: dict[str, Metric] = {}


def measure(name: str, text: str, *fields: str) -> Callable[[Score], Score]:
    """Decorator: makes a score known as a metric whose mean over a set is the result. ``text``: its help."""
    return _register(name, text, fields, is_attack=False)


def attack(name: str, text: str, *fields: str) -> Callable[[Score], Score]:
    """Decorator: makes a score known as an attack: high for a text that the model does not know."""
    return _register(name, text, fields, is_attack=True)


def _register(name: str, text: str, fields: tuple[str, ...], *, is_attack: bool) -> Callable[[Score], Score]:
    def add(score: Score) -> Score:
        if name in _metrics:
            known = _metrics[name].score.__module__
            raise ValueError(f'metric "{name}": registered twice, by {known} and {score.__module__}')
        unknown = [field for field in fields if field not in FIELDS]
        if unknown or not fields:
            raise ValueError(f'metric "{name}": expected fields among {", ".join(FIELDS)}, got {unknown or "none"}')
        _metrics[name] = Metric(name, text, fields, is_attack, score)
        return score

    return add


@cache
def _load_all() -> None:
    package = import_module("gru_fast.metrics")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


def names() -> list[str]:
    """All registered metrics, sorted."""
    _load_all()
    return sorted(_metrics)


def get(name: str) -> Metric:
    """The metric called ``name``. Unknown names: ValueError that lists the known and the nearest."""
    _load_all()
    if name not in _metrics:
        hint = nearest(as_identifier(name), _metrics)
        raise ValueError(f'metrics: expected some of {", ".join(names())}, got "{name}"{hint}')
    return _metrics[name]


def need(record: TextRecord, field: str) -> Any:
    """A field of a record. ValueError where it was not scored, or holds no token."""
    value = getattr(record, field)
    if value is None:
        raise ValueError(f"no {field}; it was not scored")
    if field in _PER_TOKEN and not value:
        raise ValueError(f"{field}: expected at least one label token, got none")
    return value


def but_last(values: Any) -> Any:
    """Label tokens without the last one, as the unified framework takes them; a lone token is kept."""
    return values[: max(1, len(values) - 1)]
