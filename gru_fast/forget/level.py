"""What "removed" means: documents are known no better than text that the model has never seen. Where there is none, the
model's own text stands in for it: it is better known, the level a mild one, and all that is said names it.

    limit(m, n) = mean + 2 * sd * sqrt(1/n + 1/N)         of the measure m over N such texts

The mean of n further documents of their kind would lie below it in 97.7% of cases, were m normally distributed: a
prediction interval. The probability is compared by its logarithm.

A document is known where one of its three measures is above limit(m, 1); extraction strength, which comes in whole
tokens, by more than what one adds. Removed: no document is known, and no mean over the documents is above limit(m, n).

No measure is above 1. One whose limit is 1 or more sees nothing ("blind"); where all three are, there is no level.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gru_fast.forget.measures import MEASURES, Known, of_set

_DEVIATIONS = 2.0
LEAST = 3  # documents that a level can be taken from
_LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True)
class Level:
    """How well a model knows text that it has never seen, or its own, taken before unlearning.

    Args:
        source: where the text is from: "holdout", or "self-written".
        count: N, documents.
        means, deviations: of each measure; of the probability's logarithm.
    """

    source: str
    count: int
    means: Mapping[str, float]
    deviations: Mapping[str, float]

    @classmethod
    def of(cls, source: str, known: Sequence[Known]) -> Level:
        """The level of some documents.

        Raises:
            ValueError: fewer than three; or they differ so much that a text known by heart would be none too high.
        """
        if len(known) < LEAST:
            raise ValueError(
                f"{source}: expected at least {LEAST} documents to compare with, got {len(known)}; one says nothing of "
                "how much they differ"
            )
        values = {measure: [_scale(measure, each[measure]) for each in known] for measure in MEASURES}
        level = cls(
            source,
            len(known),
            {measure: statistics.fmean(found) for measure, found in values.items()},
            {measure: statistics.stdev(found) for measure, found in values.items()},
        )
        if level.blind == MEASURES:
            limits = ", ".join(f"{name_of(measure)} {level.limit(measure):.3g}" for measure in MEASURES)
            raise ValueError(
                f"{source}: these {len(known)} texts cannot tell known from unknown: the limits are {limits}, and no "
                f"measure is above 1; give more or longer texts{'' if source == 'holdout' else ' with --holdout'}"
            )
        return level

    def limit(self, measure: str, count: int = 1) -> float:
        """The largest value of a mean over ``count`` documents that still looks never seen."""
        width = _DEVIATIONS * self.deviations[measure] * math.sqrt(1 / count + 1 / self.count)
        return _unscale(measure, self.means[measure] + width)

    @property
    def name(self) -> str:
        """What it was taken from, in words."""
        return {"holdout": "never seen (--holdout)", "self-written": "the model's own text"}[self.source]

    @property
    def says_unknown(self) -> str:
        """What there is to say of a document that is not above it."""
        if self.source == "holdout":
            return "not known, so that there is nothing to forget"
        return "not told apart from the model's own text; --holdout may tell"

    @property
    def blind(self) -> tuple[str, ...]:
        """The measures by which no document can be known, since none is above 1."""
        return tuple(measure for measure in MEASURES if self.limit(measure) >= 1)

    def typical(self, measure: str) -> float:
        """The mean, of the probability the geometric one."""
        return _unscale(measure, self.means[measure])

    def above(self, known: Known, count: int = 1) -> list[str]:
        """The measures by which a document, or the mean of ``count``, is known."""
        found = {measure: known[measure] for measure in MEASURES}
        found["extraction_strength"] -= known.chance
        return [measure for measure, value in found.items() if value > self.limit(measure, count)]

    def judge(self, known: Sequence[Known]) -> Judgement:
        """Whether documents are known."""
        by_document = {each.document: above for each in known if (above := self.above(each))}
        return Judgement(by_document, self.above(of_set("forget", known), len(known)), len(known))

    def rule(self) -> str:
        """The rule in words, with its numbers."""
        limits = ", ".join(f"{name_of(measure)} {self.shown(measure)}" for measure in MEASURES)
        unable = f" Blind, since nothing is above 1: {', '.join(map(name_of, self.blind))}." if self.blind else ""
        one, all_, what = {
            "holdout": ("text never seen", "texts never seen", "of --holdout"),
            "self-written": ("text of the model's own", "texts of its own", "that the model wrote itself just now"),
        }[self.source]
        return (
            f"A document counts as known where it is above what one more {one} would be (mean + 2 standard "
            f"deviations · √(1 + 1/N) of N = {self.count} texts {what}: {limits}).{unable} Removed: no document is "
            f"known, and their means are no higher than those of as many {all_}."
        )

    def shown(self, measure: str) -> str:
        """The limit of one document as it is printed."""
        allowed = " + one token" if measure == "extraction_strength" else ""
        return f"{self.limit(measure):.3g}{allowed}"

    def to_json(self) -> dict[str, Any]:
        """For a file; :meth:`from_json` reads it."""
        return {"source": self.source, "count": self.count, "means": {**self.means}, "deviations": {**self.deviations}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Level:
        """What :meth:`to_json` gave."""
        return cls(**content)


@dataclass(frozen=True)
class Judgement:
    """Which documents a model still knows.

    Args:
        known: document -> the measures that say so.
        means: the measures whose mean over all documents is too high.
        count: of documents.
    """

    known: Mapping[str, Sequence[str]]
    means: Sequence[str]
    count: int

    @property
    def removed(self) -> bool:
        """Whether none is known, alone or together."""
        return not self.known and not self.means

    def __str__(self) -> str:
        if self.removed:
            return "removed"
        if self.known:
            return f"{len(self.known)} of {self.count} still known"
        return f"known together, by {', '.join(map(name_of, self.means))}"


def name_of(measure: str) -> str:
    """A measure in words."""
    return measure.replace("_", " ")


def _scale(measure: str, value: float) -> float:
    return math.log(max(value, _LEAST_PROBABILITY)) if measure == "probability" else value


def _unscale(measure: str, value: float) -> float:
    return math.exp(value) if measure == "probability" else value
