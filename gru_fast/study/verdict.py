"""What a study has found, in plain words and in numbers, whichever way it went."""

from __future__ import annotations

from collections.abc import Sequence

from gru_fast.study.render import Span
from gru_fast.study.results import StudyResults
from gru_fast.study.statistics import (
    BOTH,
    MIN_SEEDS,
    MISSING,
    NONE,
    REMOVAL,
    RETENTION,
    Change,
    Group,
    at_equal_retention,
    group,
    groups,
    pairs,
    places,
)

BETTER, WORSE, UNCLEAR = "better", "worse", "not clear"


def headline(results: StudyResults) -> str:
    """The verdict in one sentence: on how many pairs GRU improved both scores."""
    whole = group(pairs(results))
    if not whole.known:
        return "No pair of runs without and with GRU has scores: nothing can be said."
    return (
        f"GRU improves both {results.retention} and {results.removal} in {whole.count(BOTH)} of {whole.known} pairs, "
        f"one of them in {whole.count(RETENTION) + whole.count(REMOVAL)}, none in {whole.count(NONE)}."
    )


def sentences(results: StudyResults) -> list[str]:
    """What follows the headline: the counts in full, the mean changes, where it is worse, what is missing."""
    whole, found = group(pairs(results)), []
    if whole.known:
        found += [
            _counts(results, whole),
            _mean(results.retention, whole.retention),
            _mean(results.removal, whole.removal),
            *_methods(results),
            *_at_equal_retention(results),
        ]
    missing = [pair for pair in whole.pairs if pair.outcome == MISSING]
    if missing:
        named = "; ".join(f"{pair.method}, {pair.split}, seed {pair.seed}: {pair.missing}" for pair in missing)
        found.append(f"Missing of {len(whole.pairs)} pairs: {len(missing)}. {named}.")
    return found


def judged(change: Change) -> str:
    """Better, worse, or not clear: the interval holds 0, is of few seeds, or there is none."""
    if not change.is_clear or change.mean is None:
        return UNCLEAR
    return BETTER if change.mean > 0 else WORSE


def interval(change: Change, heading: str) -> str:
    """A mean change with its interval: "+0.1000 [+0.0500, +0.1500]"."""
    return str(Span(change.mean, change.low, change.high, places(heading)))


def _counts(results: StudyResults, whole: Group) -> str:
    return (
        f"One of them improved: {results.retention} alone in {whole.count(RETENTION)}, {results.removal} alone in "
        f"{whole.count(REMOVAL)}. Ties, a change of exactly 0 that counts as not improved: {whole.ties}."
    )


def _mean(heading: str, change: Change) -> str:
    text = f"Mean change of {heading}, + is better: {interval(change, heading)}"
    if change.low is None:
        return f"{text}; no interval ({change.why})."
    how = {
        BETTER: "better with GRU, the interval leaves out 0",
        WORSE: "worse with GRU, the interval leaves out 0",
        UNCLEAR: "not clear, the interval holds 0",
    }
    if change.seeds < MIN_SEEDS:
        return f"{text} over {change.seeds} seeds, too few for a verdict by it."
    return f"{text} over {change.seeds} seeds: {how[judged(change)]}."


def _methods(results: StudyResults) -> list[str]:
    """How many methods improve in the mean, and which do not."""
    known = [each for each in groups(results) if each.known]
    if not known:
        return []
    up = sum((each.retention.mean or 0) > 0 and (each.removal.mean or 0) > 0 for each in known)
    text = [f"In the mean over seeds, both improve for {up} of {len(known)} methods and splits."]
    for heading, name in ((results.retention, "retention"), (results.removal, "removal")):
        worse = [each for each in known if (getattr(each, name).mean or 0) < 0]
        if worse:
            text.append(f"{heading} is worse with GRU in the mean for {_listed(worse, name, heading)}.")
    return text


def _at_equal_retention(results: StudyResults) -> list[str]:
    """Whether removal is better at the same retention, where runs were calibrated to it."""
    changes = at_equal_retention(results)
    if not changes:
        return []
    better = sum(change > 0 for change in changes)
    mean = Span(sum(changes) / len(changes), None, None, places(results.removal))
    text = (
        f"Calibrated to the same share of the original's {results.retention} (UWC), {results.removal} is better with "
        f"GRU in {better} of {len(changes)} comparisons of a pair at a share, by {mean} in the mean."
    )
    return [text]


def _listed(worse: Sequence[Group], name: str, heading: str) -> str:
    return "; ".join(f"{each.method} on {each.split} ({interval(getattr(each, name), heading)})" for each in worse)
