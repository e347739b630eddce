"""What GRU has changed: pairs of runs that differ in GRU alone, means over seeds, bootstrap intervals, counts.

A pair is a method, a split and a seed, unlearned as the method is and with GRU, as the recipe compares them. Its two
changes, of retention and of removal, are turned so that + is better whatever the benchmark (see :data:`BETTER`). Every
pair of the recipe is counted: one of which a run has failed, or has no score, is missing, and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np

from gru_fast.study.results import COMPARISON, GRU, PLAIN, UNLEARNED, StudyResults, StudyRun

HIGHER, LOWER, NEAR_ZERO = "higher is better", "lower is better", "nearer 0 is better"
# Which way a score is better, where it is not up.
BETTER = {
    "PrivLeak": NEAR_ZERO,
    "VerbMem forget": LOWER,
    "KnowMem forget": LOWER,
    "WMDP Bio": LOWER,
    "WMDP Cyber": LOWER,
    "WMDP Bio, Cyber": LOWER,
    "forget ROUGE-L": LOWER,
    "forget prob": LOWER,
    "Prob forget": LOWER,
    "EM forget": LOWER,
    "ES forget": LOWER,
    "ROUGE-L forget": LOWER,
}
_TWO_PLACES = ("FQ (ln p)", "PrivLeak", "VerbMem forget", "KnowMem forget", "KnowMem retain")
_ORIENT: Mapping[str, Callable[[float], float]] = {
    HIGHER: lambda score: score,
    LOWER: lambda score: -score,
    NEAR_ZERO: lambda score: -abs(score),
}

# What GRU has done to a pair.
BOTH, RETENTION, REMOVAL, NONE, MISSING = "both", "retention only", "removal only", "none", "missing"
OUTCOMES = (BOTH, RETENTION, REMOVAL, NONE, MISSING)
RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
# With fewer, such an interval leaves out 0 whenever all seeds agree in sign: of 3 seeds every fourth time by chance.
MIN_SEEDS = 6

RULE = (
    "A pair is a method, a split and a seed, plain and with GRU. Changes are with GRU minus plain, turned so that + is "
    "better. A change of exactly 0 is a tie: it counts as not improved, and the pair is counted under ties as well. A "
    "pair of which a run has no scores is missing."
)
INTERVALS = (
    f"Intervals: {LEVEL:.0%}, percentile bootstrap of the mean, {RESAMPLES:,} resamples of the seeds (all pairs of a "
    "seed together). With 2 or 3 seeds such an interval runs from the smallest seed's mean to the largest's, and is "
    "too narrow rather than too wide; with 1 there is none."
)


def better(heading: str) -> str:
    """Which way a score is better, in words."""
    return BETTER.get(heading, HIGHER)


def places(heading: str) -> int:
    """Decimals that a score is shown with."""
    return 2 if heading in _TWO_PLACES else 4


def oriented(heading: str, score: float) -> float:
    """A score turned so that higher is better."""
    return _ORIENT[better(heading)](score)


def score_of(run: StudyRun, heading: str) -> float | None:
    """A run's score; None if it has not run, was not scored, or the score is no finite number."""
    return finite(run.scores.get(heading)) if run.is_done else None


def finite(value: float | None) -> float | None:
    """The value, or None in place of NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None without any."""
    known = [value for value in map(finite, values) if value is not None]
    return math.fsum(known) / len(known) if known else None


def by_method(
    runs: Iterable[StudyRun], wanted: Callable[[StudyRun], object] | None = None
) -> dict[str, list[StudyRun]]:
    """The runs of each method that are ``wanted``, by title, in order."""
    found: dict[str, list[StudyRun]] = {}
    for run in runs:
        if wanted is None or wanted(run):
            found.setdefault(run.title, []).append(run)
    return found


@dataclass(frozen=True)
class Pair:
    """A method without and with GRU, on one split with one seed.

    Args:
        method: its title.
        split, seed: of both runs.
        plain, gru: the runs.
        retention, removal: the changes by GRU, + is better; None where the pair is missing.
        missing: which run lacks what; empty where both changes are known.
    """

    method: str
    split: str
    seed: int | None
    plain: StudyRun
    gru: StudyRun
    retention: float | None = None
    removal: float | None = None
    missing: str = ""

    @property
    def outcome(self) -> str:
        """Whether GRU improved both, one of them, or none."""
        if self.retention is None or self.removal is None:
            return MISSING
        return {(True, True): BOTH, (True, False): RETENTION, (False, True): REMOVAL, (False, False): NONE}[
            self.retention > 0, self.removal > 0
        ]

    @property
    def is_tie(self) -> bool:
        """Whether one of the changes is exactly 0."""
        return 0 in {self.retention, self.removal}


@dataclass(frozen=True)
class Change:
    """The mean of a change over pairs, + is better.

    Args:
        mean: None without pairs.
        low, high: the bootstrap interval; None without one.
        seeds: how many there are.
        why: there is no interval.
    """

    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    why: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0, and is of enough seeds to mean something."""
        is_outside = self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)
        return is_outside and self.seeds >= MIN_SEEDS


@dataclass(frozen=True)
class Group:
    """Pairs that are looked at together.

    Args:
        method, split: of all of them; empty: of several.
        pairs: every one of the recipe.
        retention, removal: the mean changes.
    """

    method: str
    split: str
    pairs: Sequence[Pair]
    retention: Change
    removal: Change

    def count(self, outcome: str) -> int:
        """Pairs with this outcome."""
        return sum(pair.outcome == outcome for pair in self.pairs)

    @property
    def ties(self) -> int:
        """Pairs with a change of exactly 0."""
        return sum(pair.is_tie for pair in self.pairs)

    @property
    def known(self) -> int:
        """Pairs that are not missing."""
        return len(self.pairs) - self.count(MISSING)


def pairs(results: StudyResults) -> list[Pair]:
    """Every pair of the recipe, in its order."""
    found: dict[tuple[Any, ...], dict[str, list[StudyRun]]] = {}
    for run in results.find(kind=UNLEARNED, use=COMPARISON):
        found.setdefault((run.title, run.split, run.seed), {}).setdefault(run.variant, []).append(run)
    return [
        _pair(results, plain, gru)
        for variants in found.values()
        for plain, gru in product(variants.get(PLAIN, []), variants.get(GRU, []))
    ]


def at_equal_retention(results: StudyResults) -> list[float]:
    """The change of removal by GRU, + is better, of each pair at each share of the original's retention that both were
    calibrated to (UWC): what is left of a change when neither gives up more than the other.
    """
    found = []
    for pair in pairs(results):
        plain, gru = ({each.target: each.scores for each in run.calibrated} for run in (pair.plain, pair.gru))
        for target in plain.keys() & gru.keys():
            scores = [finite(scores.get(results.removal)) for scores in (plain[target], gru[target])]
            if None not in scores:
                before, after = (oriented(results.removal, cast("float", score)) for score in scores)
                found.append(after - before)
    return found


def groups(results: StudyResults) -> list[Group]:
    """The pairs of each method and split, in the recipe's order."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs(results):
        found.setdefault((pair.split, pair.method), []).append(pair)
    order = list(dict.fromkeys([*results.splits, *(split for split, _ in found)]))
    return [
        group(members, method, split)
        for (split, method), members in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


def group(members: Sequence[Pair], method: str = "", split: str = "") -> Group:
    """Pairs together, with their mean changes."""
    return Group(method, split, members, _change(members, "retention"), _change(members, "removal"))


def bootstrap(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The percentile interval of the mean of all values, when whole samples (seeds) are drawn again.

    Args:
        samples: the values of each seed; at least two, none empty.
    """
    sums = np.array([math.fsum(sample) for sample in samples])
    counts = np.array([len(sample) for sample in samples])
    drawn = np.random.default_rng(SEED).integers(len(samples), size=(RESAMPLES, len(samples)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _pair(results: StudyResults, plain: StudyRun, gru: StudyRun) -> Pair:
    missing = [lack for run in (plain, gru) for lack in _lacks(run, results.plane)]
    if missing:
        return Pair(plain.title, plain.split, plain.seed, plain, gru, missing="; ".join(missing))
    retention, removal = (_gain(plain, gru, heading) for heading in (results.retention, results.removal))
    return Pair(plain.title, plain.split, plain.seed, plain, gru, retention, removal)


def _gain(plain: StudyRun, gru: StudyRun, heading: str) -> float | None:
    before, after = score_of(plain, heading), score_of(gru, heading)
    return None if before is None or after is None else oriented(heading, after) - oriented(heading, before)


def _lacks(run: StudyRun, headings: Iterable[str]) -> list[str]:
    """Why a run cannot be compared."""
    if not run.is_done:
        return [f"{run.name} {'has ' if run.state == 'failed' else 'is '}{run.state}"]
    return [
        f"{run.name} has {'no ' if value is None else ''}{heading}{'' if value is None else f' {value}'}"
        for heading, value in ((heading, run.scores.get(heading)) for heading in headings)
        if finite(value) is None
    ]


def _change(members: Sequence[Pair], name: str) -> Change:
    seeds: dict[int | None, list[float]] = {}
    for pair in members:
        if pair.outcome != MISSING:
            seeds.setdefault(pair.seed, []).append(getattr(pair, name))
    values = [value for sample in seeds.values() for value in sample]
    if not values:
        return Change(None, None, None, 0, "no pair of which both runs have scores")
    mean = math.fsum(values) / len(values)
    if len(seeds) < 2:
        return Change(mean, None, None, 1, "one seed: nothing to draw from")
    return Change(mean, *bootstrap(list(seeds.values())), len(seeds))
