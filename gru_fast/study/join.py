"""Results of studies of one recipe, done apart (seed by seed, method by method, on several machines), as one study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gru_fast.runs.files import differences
from gru_fast.runs.records import WAITING
from gru_fast.study import check
from gru_fast.study.plan import Plan
from gru_fast.study.recipe import NAMED, PARTS
from gru_fast.study.results import StudyResults, StudyRun

_PLACES = ("data", "target")  # keys of a recipe that name places, as does model: {model: ...}; rows have hashes


def join(studies: Mapping[str, StudyResults], name: str) -> StudyResults:
    """The studies as one, with every run of theirs; its recipe has the seeds, splits and methods of all.

    Args:
        studies: by what they are called in messages, at least one.
        name: of the whole.

    A run that several have (the original of a seed, say) is taken once. One that the joined recipe plans and none of
    them has is waiting. ``seconds`` is the sum; ``environment`` has the values of all, separated by commas.

    Raises:
        ValueError: recipes that differ in more than seeds, splits, methods and places, or a run with other numbers in
            another study. Says which.
    """
    first, *others = studies.items()
    recipe, runs = dict(first[1].recipe), {run.name: run for run in first[1].runs}
    for other, results in others:
        _check_recipes(first, (other, results))
        _check_numbers(first, (other, results), runs)
        recipe = _recipe_of_both(recipe, results.recipe)
        for run in results.runs:
            runs[run.name] = _more_of(runs[run.name], run) if run.name in runs else run
    return replace(
        first[1],
        name=name,
        splits=list(recipe["splits"]),
        seeds=recipe["seeds"],
        recipe=recipe,
        command="\n".join(dict.fromkeys(results.command for results in studies.values())),
        seconds=round(sum(results.seconds for results in studies.values()), 1),
        environment=_together([results.environment for results in studies.values()]),
        runs=_planned(recipe, runs),
    )


def _planned(recipe: Mapping[str, Any], runs: Mapping[str, StudyRun]) -> list[StudyRun]:
    """Every run of a recipe in its order, then those that were made by an older version's plan."""
    from gru_fast.study import load

    planned = [each.run for each in Plan(load.make(recipe), Path(), is_done=True).runs()]
    found = {run.name: runs.get(run.name, replace(run, state=WAITING)) for run in planned}
    return [*found.values(), *(run for name, run in runs.items() if name not in found)]


# ---- recipes ---------------------------------------------------------------------------------------------------------


def _check_recipes(first: tuple[str, StudyResults], other: tuple[str, StudyResults]) -> None:
    (here, ours), (there, theirs) = first, other
    for which in ("benchmark", "backbone"):
        if getattr(ours, which) != getattr(theirs, which):
            raise ValueError(
                f"{there}: a study of {which} {getattr(theirs, which)!r}, that of {here} has {getattr(ours, which)!r}; "
                "studies of one recipe can be joined"
            )
    found = differences(_apart_from_names(ours.recipe), _apart_from_names(theirs.recipe))
    for key in ("methods", "splits"):
        both = {name: own for name, own in ours.recipe[key].items() if name in theirs.recipe[key]}
        found += differences(both, {name: theirs.recipe[key][name] for name in both}, key)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"{there}: its recipe is not that of {here}: {found[0]}{more}; studies can be joined whose recipes differ "
            "in seeds, splits and methods alone"
        )


def _apart_from_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in studies that are joined; a part that one of them lacks is no difference."""
    found = {key: value for key, value in recipe.items() if key not in {*NAMED, *_PLACES, *PARTS, "retrained"}}
    return found | {"model": {key: value for key, value in recipe.get("model", {}).items() if key != "model"}}


def _recipe_of_both(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    found = {**one}
    for key in ("methods", "splits", "retrained", "config"):
        if key in one or key in two:
            found[key] = {**one.get(key, {}), **two.get(key, {})}
    found["seeds"] = sorted({*_seeds(one), *_seeds(two)})
    for part in PARTS:
        if one.get(part) or two.get(part):
            found[part] = _part_of_both(part, one, two, found)
    return found


def _part_of_both(
    part: str, one: Mapping[str, Any], two: Mapping[str, Any], whole: Mapping[str, Any]
) -> dict[str, Any]:
    """A part that both have, or one of them, for all that either has it for."""
    having = [recipe for recipe in (one, two) if recipe.get(part)]
    options = [{key: value for key, value in recipe[part].items() if key not in NAMED} for recipe in having]
    if changed := differences(options[0], options[-1], part):
        raise ValueError(f"studies with other {part} cannot be joined: {changed[0]}")
    found = dict(options[0])
    for key in NAMED:
        named = [name for recipe in having for name in recipe[part].get(key) or _all(recipe, key)]
        kept = [name for name in _all(whole, key) if name in named]
        if kept != _all(whole, key):
            found[key] = kept
    return found


def _all(recipe: Mapping[str, Any], key: str) -> list[Any]:
    return _seeds(recipe) if key == "seeds" else list(recipe[key])


def _seeds(recipe: Mapping[str, Any]) -> list[int]:
    return list(recipe.get("seeds", [0]))


# ---- runs ------------------------------------------------------------------------------------------------------------


def _check_numbers(
    first: tuple[str, StudyResults], other: tuple[str, StudyResults], runs: Mapping[str, StudyRun]
) -> None:
    (here, ours), (there, theirs) = first, other
    for again in check.compare(replace(ours, runs=list(runs.values())), theirs).again:
        said = [*(f"{what} {a!r}, not {b!r}" for what, (b, a) in again.others.items()), *again.settings]
        if said:
            more = f", and {len(said) - 1} more" if len(said) > 1 else ""
            raise ValueError(
                f"{there}: {again.name} is not the run of that name in {here}: {said[0]}{more}; gru-fast study {here} "
                f"--report --check {there} compares them"
            )


def _more_of(one: StudyRun, two: StudyRun) -> StudyRun:
    """Of a run in two studies the one with scores, with what only the other was calibrated, attacked or asked for."""
    if one.is_done != two.is_done:
        return one if one.is_done else two
    parts = ("points", "samples", "calibrated", "attacked")
    further = {part: getattr(one, part) or getattr(two, part) for part in parts}
    commands = list(dict.fromkeys([*one.commands, *two.commands]))
    return replace(one, **further, commands=commands, uses=list(dict.fromkeys([*one.uses, *two.uses])))


def _together(values: Sequence[Any]) -> Any:
    """One value of all: itself where they agree; of mappings key by key; else every one, by commas."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _together([value[key] for value in values if key in value]) for key in keys}
    return ", ".join(dict.fromkeys(_shown(value) for value in values))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
