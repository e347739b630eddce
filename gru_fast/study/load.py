"""Recipes of studies: found by name, read from YAML, narrowed, and back to plain values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from gru_fast.study.recipe import NAMED, PARTS, Options, Recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "studies"
_T = TypeVar("_T")


def names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find(recipe: str) -> Path:
    """The file of a recipe, by its path or by the name of one of this package.

    Raises:
        FileNotFoundError: neither; the message lists those there are.
    """
    from gru_fast.options.coerce import nearest

    path, named = Path(recipe).expanduser(), RECIPES / f"{recipe.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    if path.name == recipe and named.is_file():
        return named
    raise FileNotFoundError(
        f'recipe: no file and no study "{recipe}"{nearest(recipe, names())}; studies: {", ".join(names())}'
    )


def read(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file.

    Args:
        changes: keys to put in the place of the file's.

    Raises:
        ValueError: all that is wrong in it, with the file's name.
    """
    from gru_fast.options.coerce import read_yaml

    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected `key: value` lines, got {type(content).__name__}")
        return make({**content, **(changes or {})})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def title(path: Path) -> str:
    """The first line of a recipe, a comment that says what it is."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()


def make(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        ValueError: unknown keys, values that do not fit, and what :class:`Recipe` refuses.
    """
    content = dict(content)
    if isinstance(content.get("splits"), (list, tuple)):
        content["splits"] = {str(split): {} for split in content["splits"]}
    if isinstance(content.get("methods"), (list, tuple)):
        content["methods"] = {str(method): {} for method in content["methods"]}
    problems: list[str] = []
    recipe = _section(Recipe, content, "", problems)
    if problems or recipe is None:
        raise ValueError("; ".join(problems))
    return recipe


def only(content: Mapping[str, Any], methods: Sequence[str], splits: Sequence[str], seeds: Sequence[int]) -> Recipe:
    """The recipe of ``content`` (:func:`to_dict`) with some of its methods and splits, and with other seeds.

    What its parts say of others is left out; a part that is for others alone is gone.
    """
    found = dict(content)
    wanted: dict[str, Sequence[Any]] = {"methods": methods, "splits": splits, "seeds": seeds}
    for where in PARTS:
        part = dict(found.get(where) or {})
        kept = {key: [name for name in part[key] if name in wanted[key]] for key in NAMED if part.get(key)}
        if where in found:
            found[where] = {**part, **kept} if all(kept.values()) else None
    found["methods"] = {method: content["methods"][method] for method in methods}
    found["seeds"] = list(seeds)
    found["splits"] = {split: _with(content["splits"][split], methods) for split in splits}
    for where in ("retrained", "config"):
        found[where] = {split: value for split, value in found.get(where, {}).items() if split in splits}
    return make(found)


def _with(split: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    return {**split, "methods": {name: own for name, own in split.get("methods", {}).items() if name in methods}}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """What :func:`make` takes, without what is as it is by default."""
    return _without_defaults(recipe)


def _section(cls: type[_T], content: Any, where: str, problems: list[str]) -> _T | None:
    """An instance of ``cls``; None where something is wrong, which is added to ``problems``."""
    from gru_fast.options.coerce import nearest

    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        problems.append(f"{where}expected `key: value` lines, got {content!r}")
        return None
    hints = typing.get_type_hints(cls)
    before = len(problems)
    known = [part.name for part in dataclasses.fields(cls)]  # type: ignore[arg-type]
    problems += [f"{where}{key}: no such key{nearest(str(key), known)}" for key in content if key not in known]
    values = {key: _value(hints[key], raw, f"{where}{key}: ", problems) for key, raw in content.items() if key in known}
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(f"{where}{error}")
        return None


def _value(hint: Any, raw: Any, where: str, problems: list[str]) -> Any:
    """``raw`` as the field's type has it: a section, sections by name, options by name, a list of numbers, a scalar."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if raw is None and type(None) in typing.get_args(hint):
        return None
    if dataclasses.is_dataclass(kinds[0]):
        return _section(typing.cast("type[Any]", kinds[0]), raw, where, problems)
    of = typing.get_args(hint)
    if typing.get_origin(hint) is dict and of[1] is not Any:
        return _mapping(of[1], raw, where, problems)
    return _scalar(hint, raw, where, problems)


def _mapping(hint: Any, raw: Any, where: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{where}expected NAME: value lines, got {raw!r}")
        return {}
    if hint == Options:  # `ga:` alone is without options
        raw = {name: {} if value is None else value for name, value in raw.items()}
    return {str(name): _value(hint, value, f"{where}{name}: ", problems) for name, value in raw.items()}


def _scalar(hint: Any, raw: Any, where: str, problems: list[str]) -> Any:
    from gru_fast.options.coerce import coerce

    try:
        if typing.get_origin(hint) is list:
            items: Sequence[Any] = raw if isinstance(raw, (list, tuple)) else coerce(raw, list, {})
            return [coerce(item, typing.get_args(hint)[0], {}) for item in items]
        return coerce(raw, hint, {})
    except ValueError as error:
        problems.append(f"{where}{error}")
        return None


def _without_defaults(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        found = {}
        for part in dataclasses.fields(value):
            item = getattr(value, part.name)
            default = part.default if part.default_factory is MISSING else part.default_factory()
            if item != default:
                found[part.name] = _without_defaults(item)
        return found
    if isinstance(value, Mapping):
        return {name: _without_defaults(item) for name, item in value.items()}
    return value
