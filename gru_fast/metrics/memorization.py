"""Memorization: how much of a text a model completes by itself, token by token, when it is given the text so far.

Both scores read which label tokens are the model's most probable ones ("correct"), and leave the last label out, as the
unified framework does: in a row that ends with the end-of-sequence token that is what it is. A text of one token keeps
it.
"""

from __future__ import annotations

from gru_fast.metrics.scores import TextRecord, but_last, measure, need


@measure("exact_memorization", "share of the answer's tokens that the model has right (1: all known)", "correct")
def exact_memorization(record: TextRecord) -> float:
    """(1/n) * number of t with argmax p(. | x, y_<t) = y_t; Tirumala et al. 2022 (arXiv 2205.10770). 0 to 1.

    >>> exact_memorization(TextRecord(0, correct="01101"))  # the last is left out
    0.5
    """
    correct = but_last(need(record, "correct"))
    return correct.count("1") / len(correct)


@measure(
    "extraction_strength",
    "share of an answer's end that the model completes without an error (1: all of it)",
    "correct",
)
def extraction_strength(record: TextRecord) -> float:
    """1 - k/n, k the fewest first tokens from which the model continues greedily with all the others. 0 to 1.

    Carlini et al. 2021 (arXiv 2012.07805), Wang et al. 2025 (arXiv 2406.09179). Of teacher-forced predictions it is the
    length of the last run of right ones, over n.

    The unified framework gives 1/n, not 0, where not even the last token is right; here that is 0, as the definition
    has it (k = n, nothing is left to continue). Its published numbers are those of ``extraction_strength_unified``.

    >>> extraction_strength(TextRecord(0, correct="01110")), extraction_strength(TextRecord(0, correct="11001"))
    (0.75, 0.0)
    """
    correct = but_last(need(record, "correct"))
    return (len(correct) - len(correct.rstrip("1"))) / len(correct)


@measure(
    "extraction_strength_unified",
    "the same, but 1/n and not 0 where no token is completed: to compare with numbers of open-unlearning",
    "correct",
)
def extraction_strength_unified(record: TextRecord) -> float:
    """:func:`extraction_strength`, but 1/n where it is 0.

    >>> extraction_strength_unified(TextRecord(0, correct="11001"))
    0.25
    """
    return max(extraction_strength(record), 1 / len(but_last(need(record, "correct"))))
