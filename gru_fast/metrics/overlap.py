"""How much of a text stands in another, word by word: what counts as having written it down."""

from __future__ import annotations

from difflib import SequenceMatcher

from gru_fast.data.ngrams import words_of


def longest_run(reference: str, generation: str) -> int:
    """Most words in a row that both texts have, whatever their case.

    >>> longest_run("when in the course of human events", "But in the course, of nature")
    4
    """
    ours, theirs = words_of(reference), words_of(generation)
    return SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size


def exact_share(reference: str, generation: str) -> float:
    """Share of the reference's words that a generation has, from the first one on, before its first other word.

    >>> exact_share("to be or not to be", "To be, or else")
    0.5
    """
    ours, theirs = words_of(reference), words_of(generation)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return same / len(ours) if ours else 0.0
