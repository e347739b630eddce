"""RWKU's metrics: of records, one a probe, to the numbers of its tables (Jin et al. 2024, arXiv 2406.10890, section 4).

Forget and neighbour probes   ROUGE-L recall of the answer: fill in the blank (FB), question (QA), attack (AA)
Membership                    mean loss on what a model knew of the person (FM), and of others (RM); 4 attacks' scores
Utility                       MMLU accuracy, BBH exact match, TruthfulQA MC1, TriviaQA F1, fluency
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from gru_fast.metrics import fluency
from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.scores import TextRecord

Record = Mapping[str, Any]  # of a probe, as gru_fast.benchmarks.rwku.records writes it
NO_ANSWER = "NOANSWER"  # what stands for an empty one in its code

_ANSWER = re.compile(r"[t|T]he answer is (.*?)\.")  # its pattern, to the letter
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


# ---- one answer ------------------------------------------------------------------------------------------------------


def rouge_l_recall(reference: str, generation: str) -> float:
    """ROUGE-L recall of words between spaces, as they are written, sentence by sentence; 0 to 1.

    The paper's code takes the package ``rouge``. This is ``rouge_score`` (its rougeLsum) with that package's words and
    sentences, which end at full stops. Of one sentence and distinct words the two are equal (tried on 3000 pairs);
    ``rouge`` counts a repeated word once, and breaks ties between sentences otherwise.

    >>> rouge_l_recall("Portland, Maine", "He was born in Portland, Maine."), rouge_l_recall("Maine", "maine")
    (1.0, 0.0)
    """
    reference, generation = (_sentences(text) for text in (reference, generation.strip() or NO_ANSWER))
    return float(_scorer().score(reference, generation)["rougeLsum"].recall)


def exact_match(references: str | Sequence[str], generation: str) -> float:
    """1 where the generation is one of the references, but for case, punctuation, articles and spaces; else 0.

    RWKU's code gives a lone text to a function of lists, and so compares with each of its letters; here it is one
    reference.
    """
    return float(_words(generation) in map(_words, _listed(references)))


def f1(references: str | Sequence[str], generation: str) -> float:
    """F1 of words (as in :func:`exact_match`), the best over the references; 0 to 1."""
    return max(_f1(_words(reference), _words(generation)) for reference in _listed(references))


def stated_answer(generation: str) -> str:
    """What follows "the answer is", up to the next full stop; all of it where nothing does.

    >>> stated_answer("2 and 2 are 4. So the answer is (B). Next")
    '(B)'
    """
    found = _ANSWER.search(generation)
    return (found[1] if found else generation).strip() or NO_ANSWER


def mc1(losses: Sequence[float], labels: Sequence[int]) -> float:
    """1 where the first true answer is more probable than every false one; losses are sums of -log p, labels 1 or 0."""
    true = [loss for loss, label in zip(losses, labels, strict=True) if label == 1]
    false = [loss for loss, label in zip(losses, labels, strict=True) if label != 1]
    return float(true[0] < min(false))


def mc2(losses: Sequence[float], labels: Sequence[int]) -> float:
    """The true answers' share of the probability of all answers, 0 to 1."""
    least = min(losses)
    probs = [math.exp(least - loss) for loss in losses]
    return math.fsum(p for p, label in zip(probs, labels, strict=True) if label == 1) / math.fsum(probs)


# ---- a set -----------------------------------------------------------------------------------------------------------


def _of(name: str) -> Callable[[Record], float]:
    return lambda row: float(row[name])


# group or set -> {metric: of a record}; a set's own entry comes before its group's
MEASURES: dict[str, dict[str, Callable[[Record], float]]] = {
    "forget": {"rougeL_recall": lambda row: rouge_l_recall(row["answer"], row["generation"])},
    "neighbor": {"rougeL_recall": lambda row: rouge_l_recall(row["answer"], row["generation"])},
    "mia": {name: _of(name) for name in ("loss", "zlib", "min_k", "min_k_plus_plus")},
    "utility_general": {"accuracy": lambda row: float(row["losses"].index(min(row["losses"])) == row["answer"])},
    "utility_reason": {"exact_match": lambda row: exact_match(row["answer"], stated_answer(row["generation"]))},
    "utility_truthfulness": {
        "mc1": lambda row: mc1(row["mc1_losses"], row["mc1_labels"]),
        "mc2": lambda row: mc2(row["mc2_losses"], row["mc2_labels"]),
    },
    "utility_factuality": {
        "f1": lambda row: f1(row["answers"], row["generation"]),
        "exact_match": lambda row: exact_match(row["answers"], row["generation"]),
    },
    "utility_fluency": {"entropy": lambda row: fluency.fluency(TextRecord(0, generation=row["generation"]))},
}


def summarize(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Set -> metric -> its mean over the probes."""
    found = {}
    for name, rows in records.items():
        of_rows = scores(name, rows)
        found[name] = {metric: exact_mean([row[metric] for row in of_rows]) for metric in of_rows[0]}
    return found


def scores(name: str, rows: Sequence[Record]) -> list[dict[str, float]]:
    """Of each probe of a set, by metric."""
    measures = MEASURES.get(name) or MEASURES[name.partition("_")[0]]
    return [{metric: score(row) for metric, score in measures.items()} for row in rows]


def by_type(rows: Sequence[Record]) -> dict[str, float]:
    """Kind of attack -> mean ROUGE-L recall, of forget_level3."""
    kinds = dict.fromkeys(row["type"] for row in rows)
    return {
        kind: exact_mean([rouge_l_recall(row["answer"], row["generation"]) for row in rows if row["type"] == kind])
        for kind in kinds
    }


def _listed(references: str | Sequence[str]) -> Sequence[str]:
    return [references] if isinstance(references, str) else references


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles: SQuAD's form, as RWKU's code has it."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(reference: list[str], generation: list[str]) -> float:
    if not reference or not generation:
        return float(reference == generation)
    common = (Counter(reference) & Counter(generation)).total()
    return 2 * common / (len(reference) + len(generation))


def _sentences(text: str) -> str:
    return "\n".join(" ".join(part.split()) for part in text.split("."))


class _Spaces:
    """The words that ``rouge_score`` is to count: what stands between spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeLsum"], tokenizer=_Spaces())
