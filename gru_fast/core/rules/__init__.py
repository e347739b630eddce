"""Rules: from the sums of a step to its coefficients; csrc/combinations.h is the same for kernels.

With ``d = <g, x>``, ``m = |x|^2``, ``u = |g|^2`` over all parameters as one vector, a rule names alpha and beta of::

    g <- alpha * g + beta * x        x: e, the average of the retain gradients, or r, that of this step

A rule never touches gradient memory, and the passes know no rule. Clipping to tau, and what is done where digits have
cancelled, is the same for all of them (decision.py). A new rule is a class here and a line in ``RULES``, and the same
in csrc/combinations.h, which a test holds against this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gru_fast.core.rules.balances import HAMU, MGDA, CAGrad, NGDiff
from gru_fast.core.rules.base import Combination, Dots, Rule
from gru_fast.core.rules.decision import (
    DEGENERATE,
    Decision,
    GroupDecision,
    decide,
    decide_groups,
    decide_sets,
    is_shut,
    settle,
    settled,
)
from gru_fast.core.rules.gates import SAGO
from gru_fast.core.rules.projections import AGEM, BLUR, GDR, GRU, GU, PCGrad, UPGrad
from gru_fast.core.rules.several import GEM, SetDots, SeveralRule, Spread, Subspace

# By the value of RuleId in csrc/pipeline.h.
RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (GRU, GDR, AGEM, PCGrad, UPGrad, BLUR, GU, NGDiff, MGDA, CAGrad, HAMU, SAGO, GEM, Subspace)
}


def rule_of(rule: str | Rule, options: Mapping[str, Any] | None = None) -> Rule:
    """A rule by its name, with ``options``, or the rule itself.

    Raises:
        TypeError: neither a name nor a rule. ValueError: no such rule or option, or a value that the option cannot
            have; the message names those there are.

    >>> rule_of("pcgrad", {"form": "mean"})
    PCGrad(form='mean', w_f=1.0, w_r=1.0)
    """
    if isinstance(rule, Rule):
        if options:
            raise ValueError(f"options: expected none beside {rule!r}, which has its own, got {dict(options)}")
        return rule
    if not isinstance(rule, str):
        got = f"the class {rule.__name__}" if isinstance(rule, type) else type(rule).__name__
        raise TypeError(f"rule: expected a name or a rule such as rules.PCGrad(), got {got}")
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    known = [field.name for field in dataclasses.fields(RULES[rule])]
    for name in options or {}:
        if name not in known:
            there = f"one of {', '.join(known)}" if known else "no options"
            raise ValueError(f"{rule}: expected {there}, got {name!r}")
    return RULES[rule](**(options or {}))


__all__ = [
    "AGEM", "BLUR", "DEGENERATE", "GDR", "GEM", "GRU", "GU", "HAMU", "MGDA", "RULES", "SAGO", "CAGrad", "Combination",
    "Decision", "Dots", "GroupDecision", "NGDiff", "PCGrad", "Rule", "SetDots", "SeveralRule", "Spread", "Subspace",
    "UPGrad", "decide", "decide_groups", "decide_sets", "is_shut", "rule_of", "settle", "settled",
]  # fmt: skip
