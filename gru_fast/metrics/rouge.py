"""ROUGE of a generation against its reference: what the benchmarks report of free text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Rouge:
    """Overlap with the reference, each 0 to 1: words (rouge1) and the longest common subsequence (rougeL)."""

    rouge1_recall: float
    rougeL_recall: float  # noqa: N815 (the published name)
    rougeL_f1: float  # noqa: N815


def rouge(reference: str, generation: str, *, stemmer: bool = True) -> Rouge:
    """ROUGE by the ``rouge_score`` package, as the published numbers. ``stemmer``: Porter's, on for TOFU.

    >>> rouge("He was born in Rome.", "In Rome").rougeL_recall
    0.4
    """
    scores = _scorer(stemmer).score(reference, generation)
    return Rouge(scores["rouge1"].recall, scores["rougeL"].recall, scores["rougeL"].fmeasure)


@cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
