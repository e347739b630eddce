"""What an unlearning method is, and the registry of them: one file a method in this folder, nothing else to edit."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from gru_fast.runs.messages import as_identifier, nearest
from gru_fast.unlearn.batch import Batch

_methods: dict[str, type[Method]] = {}


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """An unlearning objective, minimised: ``forget_loss + retain_loss``.

    Without GRU the model is trained on it. With GRU, g is the gradient of the whole objective and r that of the retain
    NLL, both over all trainable parameters: the public code's reading of the paper's "w/ GRU".

    A subclass is a frozen dataclass whose fields, made by :func:`hyper`, are its hyper-parameters: the one home of
    default, help and range. It sees no model: losses are functions of a :class:`~gru_fast.unlearn.batch.Batch`.
    """

    name: ClassVar[str]  # set by register
    title: ClassVar[str]  # as in the paper's tables
    reference_log_probs: ClassVar[tuple[str, ...]] = ()  # parts whose reference log-probabilities it reads
    reference_model: ClassVar[bool] = False  # whether it reads Batch.retain_kl or Batch.reference_hidden_states
    hidden_states: ClassVar[bool] = False  # whether it reads Batch.hidden_states
    logits: ClassVar[bool] = False  # whether it reads Batch.label_logits; with reference_model, that model's too
    has_dual: ClassVar[bool] = False  # whether it reads Batch.dual, a weight that follows the retain NLL step by step
    weighs_by_batch: ClassVar[bool] = False  # whether retain_nll_weight goes by the rows of the batch
    parts: ClassVar[tuple[str, ...]] = ("forget",)  # parts of a batch its objective reads: forget, retain, idk

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(f"{self.name}.{field.name}", getattr(self, field.name), field.metadata, field.default)

    @abstractmethod
    def forget_loss(self, batch: Batch) -> Tensor:
        """Scalar: the part of the objective that removes."""

    def retain_nll_weight(self, batch: Batch) -> float:
        """w, where the retain term is w times the retain NLL. GRU has that gradient already and does not redo it."""
        return 0.0

    def retain_loss(self, batch: Batch) -> Tensor | None:
        """Scalar: any further part of the objective that keeps; None if there is none.

        A mean over the retain rows (``retain_kl``: over their positions): a large retain batch is run in pieces, whose
        losses are weighted by their rows.
        """
        return None

    def first_dual(self) -> float:
        """``Batch.dual`` in the first step; asked of methods with ``has_dual``."""
        raise NotImplementedError(f"{self.name}: has no dual variable")

    def next_dual(self, dual: float, retain_nll: float, epoch: int) -> float:
        """``Batch.dual`` after a step that had ``dual`` and the mean retain NLL, in an epoch counted from 0."""
        raise NotImplementedError(f"{self.name}: has no dual variable")

    def hidden_layer(self, num_layers: int) -> int:
        """Which of the model's ``num_layers`` layers, from 0, gives the hidden states it reads."""
        raise NotImplementedError(f"{self.name}: reads no hidden states")

    def trains(self, name: str, num_layers: int) -> bool:
        """Whether the parameter ``name`` (as in ``named_parameters()``) is trained; asked of methods that read hidden
        states. Whatever is frozen stays frozen."""
        return True

    def what_to_train(self, names: Sequence[str], num_layers: int) -> str:
        """What to do where it trains none of the parameters ``names``, those of the model that are trainable."""
        return "name them in method_options"


def hyper(
    default: Any, text: str, *, above: float | None = None, at_least: float | None = None, choices: tuple[Any, ...] = ()
) -> Any:
    """A hyper-parameter of a method: a dataclass field with its help ``text`` and its range (of finite numbers).

    Where the default is an int it must be a whole number, where it is a str a text.
    """
    return dataclasses.field(
        default=default, metadata={"help": text, "above": above, "at_least": at_least, "choices": choices}
    )


def _check_range(what: str, value: Any, metadata: Mapping[str, Any], default: Any) -> None:
    choices = metadata.get("choices", ())
    if choices:
        if value not in choices:
            raise ValueError(f"{what}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
        return
    if isinstance(default, str):
        if not isinstance(value, str):
            raise TypeError(f"{what}: expected a text, got {value!r}")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what}: expected a number, got {value!r}")
    if isinstance(default, int) and not isinstance(value, int):
        raise TypeError(f"{what}: expected a whole number, got {value!r}")
    above, at_least = metadata.get("above"), metadata.get("at_least")
    if above is not None and not above < value < math.inf:
        raise ValueError(f"{what}: expected a number above {above:g}, got {value}")
    if at_least is not None and not at_least <= value < math.inf:
        raise ValueError(f"{what}: expected a number of at least {at_least:g}, got {value}")
    if not math.isfinite(value):
        raise ValueError(f"{what}: expected a finite number, got {value}")


_M = TypeVar("_M", bound=type[Method])


def register(name: str, title: str) -> Callable[[_M], _M]:
    """Class decorator: makes a method known as ``name`` (flags, configs), and ``title`` (tables)."""

    def add(cls: _M) -> _M:
        if name in _methods:
            raise ValueError(f'method "{name}": registered twice, by {_methods[name].__module__} and {cls.__module__}')
        cls.name, cls.title = name, title
        _methods[name] = cls
        return cls

    return add


@cache
def _load_all() -> None:
    package = import_module("gru_fast.unlearn.methods")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


def names() -> list[str]:
    """All registered methods, sorted."""
    _load_all()
    return sorted(_methods)


def get(name: str) -> type[Method]:
    """The class of a method. Unknown names: ValueError that lists the known and the nearest."""
    _load_all()
    if name not in _methods:
        hint = nearest(as_identifier(name), _methods)
        raise ValueError(f'method: expected one of {", ".join(names())}, got "{name}"{hint}')
    return _methods[name]


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method with its hyper-parameters. Unknown ones: ValueError with the known."""
    cls = get(name)
    known = [field.name for field in dataclasses.fields(cls)]
    for option in options or {}:
        if option not in known:
            hint = nearest(option, known, before="; ")
            raise ValueError(f'method_options: {name} takes {", ".join(known) or "no options"}, got "{option}"{hint}')
    return cls(**(options or {}))
