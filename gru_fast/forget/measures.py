"""How well a model knows documents: scored token by token, and continued from a prefix.

A document is measured through its pieces. Every token of it is scored once, so that a document's numbers are means over
all of its tokens, and those of a set are means over its documents.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gru_fast.data.ngrams import words_of
from gru_fast.data.own import Piece
from gru_fast.data.sequences import IGNORE_INDEX
from gru_fast.evaluation.asking import Prompt, Scorer
from gru_fast.metrics import mia
from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.memorization import exact_memorization, extraction_strength
from gru_fast.metrics.overlap import exact_share, longest_run
from gru_fast.metrics.rouge import rouge
from gru_fast.metrics.scores import TextRecord

MEASURES = ("probability", "exact_memorization", "extraction_strength")
_MOST_LOSS = 700.0  # whose exponential is still a number
# Membership attacks that need no other model, and no backward pass.
ATTACKS = {
    "mia_loss": mia.loss_score,
    "mia_min_k": mia.min_k_score,
    "mia_min_k_plus_plus": mia.min_k_plus_plus_score,
    "mia_zlib": mia.zlib_score,
}


@dataclass(frozen=True)
class Known:
    """How well a model knows a document, or a set of them; each 0 to 1.

    Args:
        document: its id; of a set, its name.
        tokens: that were scored.
        probability: of a token given those before it, geometric mean: exp(mean log p). 1 / perplexity.
        exact_memorization: share of the tokens that are the model's most probable ones.
        extraction_strength: share of the tokens from which on the model has all to the end of the piece right.
        chance: what one token adds to the extraction strength, at most: the last of any piece may be right by chance.
    """

    document: str
    tokens: int
    probability: float
    exact_memorization: float
    extraction_strength: float
    chance: float = 0.0

    def __getitem__(self, measure: str) -> float:
        return float(getattr(self, measure))


@dataclass(frozen=True)
class Extraction:
    """What a model writes when it is given the beginning of a piece.

    Args:
        document, piece: which.
        prefix, truth, written: what it was given, what comes next in the document, what it wrote; "" where no text is
            to be kept.
        rougeL_recall: see :class:`gru_fast.metrics.rouge.Rouge`.
        longest_run: most words in a row that are the document's.
        words: of the truth.
        exact: share of them written from the first on without an error.
    """

    document: str
    piece: int
    prefix: str
    truth: str
    written: str
    rougeL_recall: float  # noqa: N815 (the published name)
    longest_run: int
    words: int
    exact: float


# ---- scored ----------------------------------------------------------------------------------------------------------


def records(scorer: Scorer, pieces: Sequence[Piece], *, compressed: bool = False) -> list[TextRecord]:
    """What the model makes of each piece, token by token; ``compressed``: with the length of its text under zlib."""
    rows = [piece.row for piece in pieces]
    lengths = [_zlib_length(scorer.tokenizer, row["labels"]) if compressed else None for row in rows]
    return [
        TextRecord(
            index,
            log_probs=tuple(score.log_probs.tolist()),
            correct="".join("1" if right else "0" for right in score.correct.tolist()),
            vocab_means=tuple(score.means.tolist()),
            vocab_variances=tuple(score.variances.tolist()),
            zlib_bytes=length,
        )
        for index, (score, length) in enumerate(zip(scorer.token_scores(rows), lengths, strict=True))
    ]


def by_document(pieces: Sequence[Piece], found: Sequence[TextRecord]) -> list[Known]:
    """The documents in their order, each of its pieces. ``found``: of :func:`records`."""
    pairs = zip(pieces, found, strict=True)
    return [
        _known(name, [record for _, record in some]) for name, some in groupby(pairs, lambda pair: pair[0].document)
    ]


def of_set(name: str, known: Sequence[Known]) -> Known:
    """A set of documents as one: means over documents (of the probability, geometric); at least one document."""
    if not known:
        raise ValueError(f"{name}: expected at least one document, got none")
    return Known(
        name,
        sum(each.tokens for each in known),
        math.exp(exact_mean(math.log(max(each.probability, 1e-300)) for each in known)),
        exact_mean(each.exact_memorization for each in known),
        exact_mean(each.extraction_strength for each in known),
        exact_mean(each.chance for each in known),
    )


def perplexity(found: Sequence[TextRecord]) -> float:
    """exp of the mean loss over all tokens of some pieces."""
    log_probs = [value for record in found for value in record.log_probs or ()]
    return math.exp(min(-math.fsum(log_probs) / len(log_probs), _MOST_LOSS))


def membership(forget: Sequence[TextRecord], holdout: Sequence[TextRecord]) -> dict[str, float]:
    """AUC of each attack between two sets of pieces: 1/2 where they cannot be told apart, near 1 where one is known."""
    return {name: mia.auc([*map(score, forget)], [*map(score, holdout)]) for name, score in ATTACKS.items()}


def _known(document: str, found: Sequence[TextRecord]) -> Known:
    counts = [len(record.log_probs or ()) for record in found]
    total = sum(counts)

    def mean(score: Callable[[TextRecord], float]) -> float:
        return math.fsum(score(record) * count for record, count in zip(found, counts, strict=True)) / total

    # As extraction_strength has it where one token is right: of the labels but the last, then weighted by all.
    chance = max(1 / max(1, count - 1) * count / total for count in counts)
    return Known(document, total, 1 / perplexity(found), mean(exact_memorization), mean(extraction_strength), chance)


def _zlib_length(tokenizer: Any, labels: Sequence[int]) -> int:
    text = tokenizer.decode([label for label in labels if label != IGNORE_INDEX], skip_special_tokens=True)
    return len(zlib.compress(text.encode("utf-8")))


# ---- written ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """A piece, cut where the model is to go on."""

    piece: Piece
    prefix: list[int]
    truth: list[int]


def extractions(
    scorer: Scorer, pieces: Sequence[Piece], *, prefix: int, length: int, keep_text: bool = True
) -> list[Extraction]:
    """What the model writes after the beginning of each piece that is long enough, greedily.

    Args:
        prefix: tokens of a text that are given, at most half of a piece; of a pair or chat, all before the answer are.
        length: tokens that are written, and compared with.
        keep_text: whether the texts are kept, or their measures alone.
    """
    cut = [split for piece in pieces if (split := _split(piece, prefix, length)) is not None]
    written = scorer.write([Prompt(split.prefix, len(split.truth)) for split in cut])
    return [_extraction(scorer.tokenizer, *pair, keep_text) for pair in zip(cut, written, strict=True)]


def _split(piece: Piece, prefix: int, length: int) -> _Split | None:
    """None of a piece that has nothing to go on from, or with."""
    ids, labels = piece.row["input_ids"], piece.row["labels"]
    scored = next(at for at, label in enumerate(labels) if label != IGNORE_INDEX)
    if scored <= piece.head + (piece.index == 0 and piece.start == 0 and scored == 0):
        scored = piece.head + min((len(ids) - piece.head) // 2, prefix)
    if not 0 < scored < len(ids):
        return None
    return _Split(piece, list(ids[:scored]), list(ids[scored : scored + length]))


def _extraction(tokenizer: Any, split: _Split, written: str, keep_text: bool) -> Extraction:
    truth = tokenizer.decode(split.truth, skip_special_tokens=True)
    given = tokenizer.decode(split.prefix, skip_special_tokens=True)
    return Extraction(
        split.piece.document,
        split.piece.index,
        prefix=given if keep_text else "",
        truth=truth if keep_text else "",
        written=written if keep_text else "",
        rougeL_recall=rouge(truth, written, stemmer=False, any_script=True).rougeL_recall,
        longest_run=longest_run(truth, written),
        words=len(words_of(truth)),
        exact=exact_share(truth, written),
    )


def worst_first(found: Iterable[Extraction]) -> list[Extraction]:
    """What is nearest to the document first: by the longest run, then by ROUGE-L."""
    return sorted(found, key=lambda each: (-each.longest_run, -each.rougeL_recall, each.document, each.piece))


def worst_by_document(found: Sequence[Extraction]) -> Mapping[str, Extraction]:
    """The worst extraction of each document."""
    worst: dict[str, Extraction] = {}
    for each in worst_first(found):
        worst.setdefault(each.document, each)
    return worst
