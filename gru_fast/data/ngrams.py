"""Runs of words: whether texts share them, and how much of one repeats itself."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Letters of scripts that put no spaces between words (Thai, Lao, Myanmar, Khmer, Japanese, Chinese) are words each.
_SINGLE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_SINGLE}]|[^\s{_SINGLE}]+")
_ASCII_WORD = re.compile("[a-z0-9]+")
_ZERO_WIDTH_SPACE = "\u200b"


def words_of(text: str) -> list[str]:
    """Runs of letters and digits of any script with their marks, whatever their case and form (NFKC).

    >>> words_of("It's 5 o'clock"), words_of("東京 2024")
    (['it', 's', '5', 'o', 'clock'], ['東', '京', '2024'])
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall("".join(map(_in_words, plain)))


def _in_words(sign: str) -> str:
    """A letter, digit or mark as it is; nothing for what is not seen within a word; else a space.

    Marks are no letters to Python: without them a word of Hindi would break at each of its vowels.
    """
    kind = unicodedata.category(sign)
    if sign.isalnum() or kind[0] == "M":
        return sign
    # Soft hyphens, the joiners of Persian and Hindi: what they stand in is one word.
    return "" if kind == "Cf" and sign != _ZERO_WIDTH_SPACE else " "


def repetition(words: Sequence[str], n: int = 4) -> float:
    """1 - (distinct runs of n words) / (runs), 0 to 1, of Welleck et al. 2020 (arXiv 1908.04319); 0 without a run.

    >>> repetition(["no"] * 6)
    0.6666666666666667
    """
    runs = list(_runs(words, n))
    return 1 - len({*runs}) / len(runs) if runs else 0.0


class Known:
    """Runs of ``n`` words that texts have."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._runs: set[tuple[str, ...]] = set()
        self._lengths = {n}  # of runs, of texts shorter than n too

    def add(self, words: Sequence[str], *, whole_if_short: bool = False) -> None:
        """Takes up the runs of a text; ``whole_if_short``: one of fewer than n words, but at least three, as a run."""
        if whole_if_short and 3 <= len(words) < self.n:
            self._runs.add(tuple(words))
            self._lengths.add(len(words))
        self._runs.update(_runs(words, self.n))

    def any_in(self, words: Sequence[str]) -> bool:
        """Whether a text has one of the runs."""
        return any(run in self._runs for n in self._lengths for run in _runs(words, n))

    def share_of(self, words: Sequence[str]) -> float:
        """The share of a text's runs that are known, 0 to 1."""
        runs = list(_runs(words, self.n))
        return sum(run in self._runs for run in runs) / len(runs) if runs else 0.0


def _runs(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
