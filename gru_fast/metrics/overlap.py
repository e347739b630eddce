"""How much of a text stands in another, word by word: what counts as having written it down."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, lower case, without what stands between them.

    >>> words("To be, or NOT")
    ['to', 'be', 'or', 'not']
    """
    return _WORD.findall(text.lower())


def longest_run(reference: str, generation: str) -> int:
    """Most words in a row that both texts have.

    >>> longest_run("when in the course of human events", "but in the course of nature")
    4
    """
    ours, theirs = words(reference), words(generation)
    return SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size


def exact_share(reference: str, generation: str) -> float:
    """Share of the reference's words that a generation has, from the first one on, before its first other word.

    >>> exact_share("when in the course of human events", "When in the course, of nature")
    0.7142857142857143
    """
    ours, theirs = words(reference), words(generation)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return same / len(ours) if ours else 0.0
