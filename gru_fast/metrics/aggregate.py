"""The unified framework's aggregates on TOFU: Memorization, Privacy, Utility, and the harmonic mean of the three.

After Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618, appendix F), whose authors have no code of it any more (issue
150 of their repository; issue 172 asks what s is). H is the harmonic mean; all numbers are 0 to 1, higher is better:

    Memorization  H(1 - ES, 1 - EM, 1 - ParaProb, 1 - TR) on the forget set: extraction strength, exact memorization,
                  Probability of the paraphrased answer, truth ratio p / (p + p_wrong)
    Privacy       H of s over the attacks LOSS, ZLib, Min-k, Min-k++: how near each is to what the retrained model has
    Utility       H(MU, Fluency): Model Utility, and how probably what is written on the forget set is no gibberish

What the paper does not state, and what is done here: s of an attack is 1 - |A - A_ret| / max(A_ret, 1 - A_ret), A its
AUC, so that 0 is as far from the retrained model as an AUC can be; TR is the mean over rows, with p of the paraphrase
and p_wrong the geometric mean of the wrong answers; nothing is divided by the original model's value. So these numbers
compare runs with one another, and with the paper's tables not to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gru_fast.metrics.records import Records, rows_of
from gru_fast.metrics.tofu import harmonic_mean, truth_ratio_prob_mean

MEMORIZATION, PRIVACY, UTILITY = NAMES = ("aggregate_memorization", "aggregate_privacy", "aggregate_utility")
OVERALL = "aggregate_overall"
_ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")

HELP = {
    MEMORIZATION: "the unified framework's Memorization: forget set not extracted, memorized or believed (1: none)",
    PRIVACY: "its Privacy: four membership attacks as on the retrained model (1: alike); needs --retain-logs",
    UTILITY: "its Utility: Model Utility and fluency on the forget set",
    OVERALL: "harmonic mean of the three",
}
_NEEDS: dict[str, tuple[str, ...]] = {
    MEMORIZATION: ("extraction_strength", "exact_memorization"),
    PRIVACY: _ATTACKS,
    UTILITY: ("gibberish",),
}
_NEEDS[OVERALL] = tuple(name for needs in _NEEDS.values() for name in needs)

Numbers = Mapping[str, Mapping[str, float | None]]  # of the optional metrics, see gru_fast.metrics.extra.summarize


def with_needs(names: Sequence[str]) -> list[str]:
    """The metrics that some metrics and aggregates are made of, each once; aggregates are not among them."""
    return list(dict.fromkeys(each for name in names for each in _NEEDS.get(name, (name,))))


def aggregates(
    names: Sequence[str], numbers: Numbers, records: Records, utility: float | None
) -> dict[str, dict[str, float | None]]:
    """The aggregates among ``names``, each ``{"all": value}``; null where something that it needs is not known.

    Args:
        numbers: of the metrics of :func:`with_needs`.
        records: of TOFU's evaluation.
        utility: Model Utility.
    """
    made: dict[str, float | None] = {}
    for name in (name for name in (*NAMES, OVERALL) if name in names or OVERALL in names):
        if name == MEMORIZATION:
            made[name] = memorization(numbers, records)
        elif name == PRIVACY:
            made[name] = privacy(numbers)
        elif name == UTILITY:
            made[name] = _mean_of([utility, numbers["gibberish"]["forget"]])
        else:
            made[name] = _mean_of([made[each] for each in NAMES])
    return {name: {"all": made[name]} for name in made if name in names}


def memorization(numbers: Numbers, records: Records) -> float | None:
    """See the top of this file."""
    rows = rows_of(records, "forget", MEMORIZATION)
    losses: Any = [row.paraphrase_loss for row in rows]
    paraphrase = float(np.exp(-np.asarray(losses, dtype=np.float64)).mean())
    truth = truth_ratio_prob_mean(rows, where="forget")
    known = [numbers[name]["forget"] for name in _NEEDS[MEMORIZATION]]
    return _mean_of([None if each is None else 1 - each for each in [*known, paraphrase, truth]])


def privacy(numbers: Numbers) -> float | None:
    """See the top of this file; null without the retrained model's attacks."""
    return _mean_of([likeness(numbers[name]["auc"], numbers[name]["retained_auc"]) for name in _ATTACKS])


def likeness(auc: float | None, retained: float | None) -> float | None:
    """1 - |A - A_ret| / max(A_ret, 1 - A_ret): 1 where an attack is as on the retrained model.

    >>> likeness(1.0, 0.5), likeness(0.6, 0.6), likeness(0.2, 0.8)
    (0.0, 1.0, 0.25)
    """
    if auc is None or retained is None:
        return None
    return 1 - abs(auc - retained) / max(retained, 1 - retained)


def _mean_of(values: Sequence[float | None]) -> float | None:
    """The harmonic mean, if all are known; rounding below 0 is 0."""
    known = [max(value, 0.0) for value in values if value is not None]
    return harmonic_mean(known) if len(known) == len(values) else None
