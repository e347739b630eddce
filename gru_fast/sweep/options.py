"""What `gru-fast sweep` can be asked beside the options of `gru-fast unlearn`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gru_fast.core.checks import check_gamma, check_tau

# The paper's grids (Appendix D).
GAMMAS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
TAUS = (0.001, 0.005, 0.01, 0.1, 1.0, 10.0, 100.0)
SAMPLERS = ("grid", "tpe")


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class SweepOptions:
    """What is swept, and how it is judged.

    Raises:
        ValueError: all that cannot be, at once.
    """

    objectives: list[str] | None = field(
        default=None, metadata={"help": "methods to sweep, each over all of gamma and tau; by default --method"}
    )
    gammas: list[Any] = field(
        default_factory=partial(list, GAMMAS),
        metadata={"help": "values of gamma, in [0, 1]; by default the paper's 12"},
    )
    taus: list[Any] = field(
        default_factory=partial(list, TAUS),
        metadata={"help": "values of tau, above 0; none is no clipping; by default the paper's 7"},
    )
    sampler: str = _option(
        "grid", "grid: every pair; tpe: --trials pairs in their range, chosen by what came before", SAMPLERS
    )
    trials: int = _option(40, "tpe: runs of each method")
    retain_logs: str | None = _option(None, "evaluation of the retrained model, for Forget Quality: its run, or a log")
    share: float = _option(0.9, "the best run keeps at least this share of the original model's Model Utility")
    prune: bool = _option(
        False,
        "give up a run when, after an epoch, its Probability on the retain set alone puts that share out of reach",
    )
    eval_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of gru-fast eval tofu, such as max_rows=100 batch_size=64"}
    )
    keep_models: bool = _option(False, "keep the weights of every run; by default they are deleted once evaluated")
    retry_failed: bool = _option(False, "do failed runs again")

    def __post_init__(self) -> None:
        problems: list[str] = []
        self.gammas = _values(self.gammas, "gammas", check_gamma, problems)
        self.taus = _values(self.taus, "taus", check_tau, problems)
        problems += self._problems_of_objectives()
        if self.trials < 1:
            problems.append(f"trials: expected a whole number of at least 1, got {self.trials}")
        if not 0 <= self.share <= 1:
            problems.append(f"share: expected a number in [0, 1], got {self.share}")
        if self.sampler == "tpe" and None in self.taus:
            problems.append("taus: expected numbers with --sampler tpe, which draws between them, got none")
        if problems:
            raise ValueError("; ".join(problems))

    def _problems_of_objectives(self) -> list[str]:
        from gru_fast.unlearn import methods

        if self.objectives is None:
            return []
        if not self.objectives:
            return ["objectives: expected at least one method, got none"]
        problems = [_problem_of_method(name) for name in self.objectives if name not in methods.names()]
        return problems + [f"objectives: {name} is there twice" for name in _twice(self.objectives)]


def _problem_of_method(name: str) -> str:
    from gru_fast.options.coerce import nearest
    from gru_fast.unlearn import methods

    known = methods.names()
    return f"objectives: expected some of {', '.join(known)}, got {name!r}{nearest(str(name), known)}"


def _values(found: Sequence[Any], name: str, check: Callable[[Any], Any], problems: list[str]) -> list[float | None]:
    """The numbers of an axis, sorted; "none" (of tau) comes last: it is the largest bound there is."""
    values: list[float | None] = []
    for text in found:
        is_none = text is None or str(text).lower() in {"none", "null"}
        try:
            value = None if is_none else float(text)
            if value is None and name == "gammas":
                raise ValueError(f"expected a number in [0, 1], got {text!r}")
            check(value)
            value = None if value == math.inf else value
        except (TypeError, ValueError) as error:
            problems.append(f"{name}: {error}")
            continue
        values.append(value)
    if not found:
        problems.append(f"{name}: expected at least one value, got none")
    problems += [f"{name}: {value} is there twice" for value in _twice(values)]
    return sorted(values, key=lambda value: math.inf if value is None else value)


def _twice(values: Sequence[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value in values[:index]]
