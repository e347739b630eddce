"""Fluency of what a model writes: unlearning that goes too far leaves repetition, or no language at all.

Two measures count words, and need no model. The third is a classifier's opinion.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from gru_fast.metrics.scores import TextRecord, measure, need

# A small classifier of English text (DistilBERT, MIT licence), the one of the unified framework: clean, mild gibberish,
# word salad or noise.
GIBBERISH_MODEL = "madhurjindal/autonlp-Gibberish-Detector-492513457"
CLEAN_LABEL = "clean"
GIBBERISH_TOKENS = 512  # of a text; as that framework's class and its MUSE configuration (its TOFU configuration: 32)

_WORD = re.compile(r"\w+|[^\w\s]")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # length of n-grams -> weight


@measure("fluency", "entropy of the generation's word pairs and triples, in bits (near 0: repetition)", "generation")
def fluency(record: TextRecord) -> float:
    """(2/3 * H_2 + 4/3 * H_3) / 2, H_n = -sum_g f(g) log2 f(g) over the n-grams g of words; Meng et al. 2022 (ROME,
    arXiv 2202.05262). At least 0; it grows with the length of the text, so compare models on the same prompts and
    length.

    Words are runs of letters and digits, and single signs (the original splits by NLTK, which needs a download). A text
    of one word, or none, has 0.
    """
    words = _WORD.findall(need(record, "generation"))
    return sum(weight * _entropy(_ngrams(words, n)) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


@measure(
    "repetition", "share of the generation's 4-grams of words that occurred before (1: nothing else)", "generation"
)
def repetition(record: TextRecord, n: int = 4) -> float:
    """1 - (distinct n-grams) / (n-grams), seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319) on words. 0 to 1; 0 for a
    text without n words.

    >>> repetition(TextRecord(0, generation="no no no no no no"))
    0.6666666666666667
    """
    grams = _ngrams(_WORD.findall(need(record, "generation")), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@measure("gibberish", "probability that the generation is clean, by --gibberish-model (1: no gibberish)", "clean")
def gibberish(record: TextRecord) -> float:
    """Probability of "clean" under a text classifier, :data:`GIBBERISH_MODEL` by default. 0 to 1; as in the unified
    framework's metric of this name, 1 is good.
    """
    return float(need(record, "clean"))


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _entropy(grams: Sequence[tuple[str, ...]]) -> float:
    """Bits; 0 of nothing."""
    counts = Counter(grams).values()
    return -math.fsum(count / len(grams) * math.log2(count / len(grams)) for count in counts)
