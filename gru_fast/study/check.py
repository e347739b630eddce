"""Which numbers of a study come out again: two results.json, run by run, to the last digit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gru_fast.runs.files import differences
from gru_fast.study.results import StudyResults, StudyRun
from gru_fast.study.statistics import finite

_PLACES = ("model", "tokenizer", "data", "output_dir", "retain_logs")  # options that name places
_MACHINE = ("python", "platform", "versions", "devices", "processes", "threads")  # of an environment
_MOST = 6  # differing numbers of a run that are printed


@dataclass(frozen=True)
class Again:
    """A run that is done in both.

    Args:
        name: of the run.
        count: numbers that both have: scores, those along the way and of mixtures, what attacks brought back.
        others: those that differ, (here, there) by name.
        settings: options and rows that differ, "gamma 0.8, not 0.4", those there first. Then numbers may differ.
        missing: names of numbers that are there alone.
    """

    name: str
    count: int
    others: Mapping[str, tuple[float | None, float | None]]
    settings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """Two studies side by side.

    Args:
        again: runs that are done in both.
        missing: done there and not here, by name.
        more: done here and not there.
        machine: versions and machine that differ, those there first.
    """

    again: tuple[Again, ...]
    missing: tuple[str, ...]
    more: tuple[str, ...]
    machine: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether there is something to compare and every number of it is the same."""
        return bool(self.again) and not any(run.others for run in self.again)


def compare(here: StudyResults, there: StudyResults) -> Check:
    """What of ``there``, results on record, has come out again ``here``.

    Numbers are equal or they are not: the same commands give the same bits on the same kind of machine.
    """
    ours, theirs = _done(here), _done(there)
    return Check(
        tuple(_again(ours[name], theirs[name]) for name in theirs if name in ours),
        tuple(name for name in theirs if name not in ours),
        tuple(name for name in ours if name not in theirs),
        tuple(differences(_machine(there), _machine(here))),
    )


def said(check: Check, name: str) -> list[str]:
    """The comparison in lines; ``name``: of the results on record."""
    same = [run for run in check.again if not run.others]
    count = sum(run.count for run in check.again)
    equal = count - sum(len(run.others) for run in check.again)
    whole = f"{len(check.again)} runs are done here and in {name}: {len(same)} with the same numbers to the last digit"
    lines = [f"{whole} ({equal} of {count} numbers)"]
    for run in check.again:
        if run.others:
            shown = [f"{what} {_number(a)}, not {_number(b)}" for what, (a, b) in [*run.others.items()][:_MOST]]
            more = len(run.others) - len(shown)
            lines.append(f"  {run.name}: {'; '.join(shown)}{f'; and {more} more' if more else ''}")
        if run.missing:
            lines.append(f"  {run.name}: only there: {len(run.missing)} numbers ({_some(run.missing)})")
        lines += [f"  {run.name}: {text}" for text in run.settings]
    if check.missing:
        lines.append(f"only there: {len(check.missing)} runs ({_some(check.missing)})")
    if check.more:
        lines.append(f"only here: {len(check.more)} runs ({_some(check.more)})")
    if check.machine:
        lines.append(f"another machine or other versions: {'; '.join(check.machine)}")
    return lines


def _done(results: StudyResults) -> dict[str, StudyRun]:
    return {run.name: run for run in results.runs if run.is_done}


def _again(here: StudyRun, there: StudyRun) -> Again:
    ours, theirs = dict(_numbers(here)), dict(_numbers(there))
    both = [name for name in theirs if name in ours]
    before, now = _settings(there, here)
    return Again(
        here.name,
        len(both),
        {name: (ours[name], theirs[name]) for name in both if ours[name] != theirs[name]},
        tuple(differences(before, now)),
        tuple(name for name in theirs if name not in ours),
    )


def _numbers(run: StudyRun) -> Iterator[tuple[str, float | None]]:
    """By name; None in place of NaN and infinities, as results.json has them."""
    yield from ((name, finite(value)) for name, value in _every(run))


def _every(run: StudyRun) -> Iterator[tuple[str, float | None]]:
    yield from run.scores.items()
    for point in run.points:
        yield from ((f"{name} after step {point.step}", value) for name, value in point.scores.items())
    for each in run.calibrated:
        yield f"alpha at {each.target:.0%}", each.alpha
        yield from ((f"{name} at {each.target:.0%}", value) for name, value in each.scores.items())
    for attack in run.attacked:
        at = "" if attack.at is None else f" at {attack.at:.0%}"
        yield f"back by {attack.attack}{at}", attack.back
        yield f"back by {attack.attack}{at}, retrained", attack.retained_back


def _settings(*runs: StudyRun) -> tuple[dict[str, Any], ...]:
    """Options and rows of runs, those that all of them have on record, none among them."""
    found = [{**run.config, **({"rows": run.result["rows"]} if "rows" in run.result else {})} for run in runs]
    shared = set.intersection(*map(set, found)) - set(_PLACES)
    return tuple({name: value for name, value in each.items() if name in shared} for each in found)


def _machine(results: StudyResults) -> dict[str, Any]:
    return {name: results.environment.get(name) for name in _MACHINE}


def _number(value: float | None) -> str:
    return "none" if value is None else repr(value)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
