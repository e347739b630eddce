"""ROUGE of a generation against its reference: what the benchmarks report of free text.

The published numbers are those of the ``rouge_score`` package, which reads a to z and digits and drops all other
signs: a Russian answer scores 0 against itself, and two cities score 1 if the year beside them is the same. TOFU and
MUSE keep it, since their tables are made with it; everything else is read in whatever script it is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gru_fast.data.ngrams import words_of


@dataclass(frozen=True)
class Rouge:
    """Overlap with the reference, each 0 to 1: words (rouge1) and the longest common subsequence (rougeL)."""

    rouge1_recall: float
    rougeL_recall: float  # noqa: N815 (the published name)
    rougeL_f1: float  # noqa: N815


def rouge(reference: str, generation: str, *, stemmer: bool = True, any_script: bool = False) -> Rouge:
    """ROUGE by the ``rouge_score`` package.

    Args:
        stemmer: Porter's, of English; on for TOFU.
        any_script: words of any script (:func:`~gru_fast.data.ngrams.words_of`), not runs of a to z and 0 to 9, the
            published ones. Texts of ASCII alone score the same.

    >>> rouge("He was born in Rome.", "In Rome").rougeL_recall
    0.4
    >>> rouge("Она родилась в Москве", "В Москве", any_script=True).rougeL_recall
    0.5
    """
    scores = _scorer(stemmer, any_script).score(reference, generation)
    return Rouge(scores["rouge1"].recall, scores["rougeL"].recall, scores["rougeL"].fmeasure)


def warn_of_dropped(references: Sequence[str], where: str) -> None:
    """Warns where the published ROUGE reads less than half of the letters and digits of a row. ``where``: their set."""
    shares = [share_read(text) for text in references]
    few = [index for index, share in enumerate(shares) if share < 0.5]
    if few:
        row = few[0]
        warnings.warn(
            f"{where}: the published ROUGE reads a to z and 0 to 9 only, and drops {1 - shares[row]:.0%} of row {row}, "
            f'"{references[row][:40]}", and most of {len(few)} of {len(references)} rows: it says nothing of them. '
            "`gru-fast eval own` reads every script",
            stacklevel=2,
        )


def share_read(text: str) -> float:
    """Share of a text's letters and digits that the published ROUGE reads, 0 to 1; 1 where it has none.

    >>> share_read("Москва 2024")
    0.4
    """
    signs = [sign for sign in text if sign.isalnum()]
    return sum(sign.isascii() for sign in signs) / len(signs) if signs else 1.0


class _AnyScript:
    """The tokenizer that ``rouge_score`` asks: words of any script, those of ASCII as its own tokenizer has them."""

    def __init__(self, stemmer: bool) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._published = DefaultTokenizer(stemmer)

    def tokenize(self, text: str) -> list[str]:
        words = words_of(text)
        return [token for word in words for token in (self._published.tokenize(word) if word.isascii() else [word])]


@cache
def _scorer(stemmer: bool, any_script: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _AnyScript(stemmer) if any_script else None
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer, tokenizer=tokenizer)
