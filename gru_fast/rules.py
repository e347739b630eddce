"""The rules by which a gradient is rectified, for ``rectify_(..., rule=)``: see :mod:`gru_fast.core.rules`."""

from gru_fast.core.rules import (
    AGEM,
    BLUR,
    GDR,
    GEM,
    GRU,
    GU,
    HAMU,
    MGDA,
    RULES,
    SAGO,
    CAGrad,
    NGDiff,
    PCGrad,
    Rule,
    Subspace,
    UPGrad,
    rule_of,
)

__all__ = [
    "AGEM", "BLUR", "GDR", "GEM", "GRU", "GU", "HAMU", "MGDA", "RULES", "SAGO", "CAGrad", "NGDiff", "PCGrad", "Rule",
    "Subspace", "UPGrad", "rule_of",
]  # fmt: skip
