"""Flags, YAML keys and their help from dataclasses: the one home of names, defaults, help and choices.

    options.add(parser, ModelOptions, UnlearnConfig)             # in a command's add_arguments
    model, config = options.resolve(args, ModelOptions, UnlearnConfig)          # in its run

A value comes from, the later the stronger: the dataclass's default, the file of `--config` (a path or the name of a
recipe), that file's section `methods: METHOD:` for the method in use, a flag. All that is wrong is reported at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import yaml

from gru_fast.options.coerce import choices_of, coerce, members, nearest, read_yaml
from gru_fast.runs.files import read_text

RECIPES = Path(__file__).parents[1] / "recipes"
METHODS = "methods"  # the key of a config file under which each method has overrides of its own
_MAX_CHOICES = 12  # more than these are left to the help text

# Not for config files: secrets, and names that transformers keeps as an alias of another or for its own scripts.
_UNSAVED = {
    "hub_token", "local_rank", "gradient_checkpointing", "gradient_checkpointing_kwargs", "do_train", "do_eval",
    "do_predict", "resume_from_checkpoint", "parallelism_config",
}  # fmt: skip
_UNFLAGGED = {"local_rank", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "parallelism_config"}


def add(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Adds a flag for every field of the dataclasses, `--config` and `--print-config`.

    Fields that a class inherits from `transformers.TrainingArguments` go to a group of their own, the last. A field's
    metadata may hold "help" and "choices". Both spellings of a flag work, `--max-length` and `--max_length` (the main
    parser sees to that); a bool is `--rectify`, `--rectify false` or `--no-rectify`; a mapping `--x a=1 b=2` or JSON.
    """
    parser.usage = "%(prog)s [--config FILE] [options]"
    parser.add_argument("--config", metavar="FILE", help="YAML file with options, or the name of a recipe: gru-fast ls")
    parser.add_argument("--print-config", action="store_true", help="print every option as it would be used, and stop")
    add_group(parser, *classes)


def add_group(parser: argparse.ArgumentParser, *classes: type) -> None:
    """The flags of :func:`add` without its two: of a command that no config file is for."""
    inherited: list[tuple[Field[Any], Any]] = []
    for cls in classes:
        base = _trainer_fields(cls)
        group = parser.add_argument_group(_title(cls))
        for field, hint in _fields(cls):
            if field.name in base:
                inherited.append((field, hint))
            else:
                _add_flag(group, field, hint)
    if inherited:
        group = parser.add_argument_group("options of transformers.TrainingArguments")
        for field, hint in inherited:
            if field.name not in _UNFLAGGED:
                _add_flag(group, field, hint)


def resolve(
    args: argparse.Namespace, *classes: type, fill: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
) -> tuple[Any, ...]:
    """One instance of each dataclass from flags and config file.

    Args:
        args: of a parser that :func:`add` was called on with the same classes.
        fill: gets all values, returns values for fields that neither a flag nor the file has set.

    Raises:
        ValueError: everything that is wrong, in one message: unknown keys with the nearest name, values that do not fit
            their field, missing values, and what the dataclasses themselves refuse.
        FileNotFoundError: no such config file or recipe.
    """
    merged = _merge(args, classes)
    errors = merged.errors
    if fill is not None:
        filled = fill({**_defaults(classes), **merged.values})
        merged.values = {**filled, **merged.values}
    instances = []
    for cls in classes:
        names = {field.name for field, _ in _fields(cls)}
        missing = [name for name in _required(cls) if name not in merged.values]
        errors += [f"{name}: no value; give {flag(name)}" for name in missing if name not in merged.failed]
        if missing or names & merged.failed:
            continue  # what such an instance would complain of follows from the errors there are
        try:
            instances.append(cls(**{name: value for name, value in merged.values.items() if name in names}))
        except (ValueError, TypeError) as error:
            errors.append(str(error))
    if errors:
        numbered = errors if len(errors) == 1 else [f"({i}) {text}" for i, text in enumerate(errors, start=1)]
        raise ValueError("; ".join(numbered) if len(errors) == 1 else f"{len(errors)} errors: " + "; ".join(numbered))
    return tuple(instances)


def config_text(instances: Sequence[Any], args: argparse.Namespace | None = None) -> str:
    """The resolved options as a YAML file that `--config` takes back; with ``args``, where each value came from.

    Secrets, and aliases of other options, are left out.
    """
    sources = _merge(args, [type(instance) for instance in instances]).sources if args is not None else {}
    lines = []
    for instance in instances:
        lines.append(f"# {_title(type(instance))}")
        for name, value in to_dict([instance]).items():
            # A scalar alone ends with YAML's "..." line.
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
            source = f"  # {sources[name]}" if name in sources else ""
            lines.append(f"{name}: {text.removesuffix('...' + chr(10)).strip()}{source}")
    return "\n".join(lines) + "\n"


def to_dict(instances: Iterable[Any]) -> dict[str, Any]:
    """The fields of the instances as plain values, by name."""
    return {
        field.name: _plain(getattr(instance, field.name))
        for instance in instances
        for field in dataclasses.fields(instance)
        if field.init and field.name not in _UNSAVED
    }


def read_config(config: str) -> tuple[dict[str, Any], Path]:
    """Content and path of a config file; ``config`` is a path or the name of a recipe.

    Raises:
        FileNotFoundError: neither; the message lists the recipes and names the nearest.
        ValueError: not a YAML mapping.
    """
    path = Path(config).expanduser()
    if not path.is_file():
        named = RECIPES / f"{config.removesuffix('.yaml')}.yaml"
        if path.name != config or not named.is_file():
            known = [recipe.stem for recipe in recipes()]
            raise FileNotFoundError(
                f'--config: no file and no recipe "{config}"{nearest(config, known)}; recipes: {", ".join(known)}'
            )
        path = named
    text = read_text(path)
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `option: value` lines, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}, path


def recipes() -> list[Path]:
    """The recipes of this package, by name."""
    return sorted(RECIPES.glob("*.yaml"))


def flag(name: str) -> str:
    """The flag of a field: ``flag("max_length") == "--max-length"``."""
    return "--" + name.replace("_", "-")


@dataclasses.dataclass
class _Merged:
    values: dict[str, Any] = dataclasses.field(default_factory=dict)  # read; defaults are not in here
    sources: dict[str, str] = dataclasses.field(default_factory=dict)  # field -> where its value came from
    failed: set[str] = dataclasses.field(default_factory=set)  # fields whose value could not be read
    errors: list[str] = dataclasses.field(default_factory=list)


def _merge(args: argparse.Namespace, classes: Sequence[type]) -> _Merged:
    """Config file, the section of its method, then flags, each value read as its field's type."""
    known = {field.name: (field, hint) for cls in classes for field, hint in _fields(cls)}
    merged = _Merged()
    given = {name: value for name, value in vars(args).items() if name in known}
    content: dict[str, Any] = {}
    path = Path()
    if getattr(args, "config", None):
        content, path = read_config(args.config)
    sections = content.pop(METHODS, None)
    _put(merged, known, content, f"{path}: ", path.name)
    if sections is not None:
        default = known["method"][0].default if "method" in known else None
        chosen = given.get("method", merged.values.get("method", default))
        _put_sections(merged, known, sections, path, chosen)
    _put(merged, known, {flag(name): value for name, value in given.items()}, "", "flag")
    return merged


def _put_sections(merged: _Merged, known: Mapping[str, Any], sections: Any, path: Path, chosen: Any) -> None:
    """The overrides for the method in use. Those for other methods are read too, so that a slip in them shows early."""
    from gru_fast.unlearn import methods

    if "method" not in known:
        merged.errors.append(f'{path}: "{METHODS}" belongs to gru-fast unlearn; this command has no --method')
        return
    for name, section in sections.items() if isinstance(sections, dict) else [("", sections)]:
        if not isinstance(sections, dict) or not isinstance(section, dict):
            merged.errors.append(f"{path}: {METHODS}: expected METHOD: {{option: value}}, got {name or section!r}")
        elif name not in methods.names():
            merged.errors.append(f'{path}: {METHODS}: no method "{name}"{nearest(str(name), methods.names())}')
        else:
            target = merged if name == chosen else _Merged(errors=merged.errors)
            _put(target, known, section, f"{path}: {METHODS}: {name}: ", f"{path.name}, {METHODS}: {name}")


def _put(
    merged: _Merged,
    known: Mapping[str, tuple[Field[Any], Any]],
    layer: Mapping[str, Any],
    where: str,
    source: str,
) -> None:
    """Reads a layer of values into ``merged``; mappings are joined with what is there, anything else replaces it."""
    for key, raw in layer.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in known:
            merged.errors.append(f"{where}{key}: no such option{nearest(name, list(known))}")
            continue
        field, hint = known[name]
        try:
            value = coerce(raw, hint, field.metadata)
        except ValueError as error:
            merged.errors.append(f"{where}{key}: {error}")
            merged.failed.add(name)
            continue
        merged.failed.discard(name)
        old = merged.values.get(name)
        merged.values[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        merged.sources[name] = source


def _fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """The fields a user may set, with their resolved types."""
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls) if field.init]


def _required(cls: type) -> list[str]:
    return [f.name for f, _ in _fields(cls) if f.default is MISSING and f.default_factory is MISSING]


def _defaults(classes: Sequence[type]) -> dict[str, Any]:
    return {field.name: _default(field) for cls in classes for field, _ in _fields(cls)}


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _trainer_fields(cls: type) -> set[str]:
    """Names of the fields that a class has from transformers.TrainingArguments; nothing is imported to find out."""
    bases = [base for base in cls.__mro__[1:] if base.__name__ == "TrainingArguments"]
    return {field.name for base in bases for field in dataclasses.fields(base)}


def _title(cls: type) -> str:
    """Heading of a group: "model options" for ModelOptions."""
    words = re.findall("[A-Z][a-z0-9]*", re.sub("(Options|Config)$", "", cls.__name__))
    return " ".join([*words, "options"]).lower()


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _add_flag(group: Any, field: Field[Any], hint: Any) -> None:
    """One flag; its text is read in :func:`resolve`, so that all that is wrong shows together."""
    types, choices = members(hint), choices_of(hint, field.metadata)
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field, choices)}
    if bool in types:
        group.add_argument(flag(field.name), nargs="?", const=True, metavar="true|false", **settings)
        settings |= {"help": argparse.SUPPRESS}
        group.add_argument(f"--no-{flag(field.name)[2:]}", action="store_const", const=False, **settings)
        return
    if dict in types or list in types:
        group.add_argument(flag(field.name), nargs="+", action=_Several, metavar=_metavar(types), **settings)
        return
    listed = 0 < len(choices) <= _MAX_CHOICES
    group.add_argument(
        flag(field.name),
        metavar="{" + ",".join(_shown(choice) for choice in choices) + "}" if listed else _metavar(types),
        **settings,
    )


class _Several(argparse.Action):
    """One or more texts; one alone stays a text, which may be JSON, a path or a comma-separated list."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _shown(choice: Any) -> str:
    return "none" if choice is None else str(choice)


def _metavar(types: Sequence[Any]) -> str:
    for kind, name in ((dict, "KEY=VALUE"), (list, "TEXT"), (str, "TEXT"), (float, "X"), (int, "N")):
        if kind in types:
            return name
    return "TEXT"


def _help(field: Field[Any], choices: Sequence[Any]) -> str:
    text = " ".join(str(field.metadata.get("help", "")).split()).rstrip(".")
    if len(choices) > _MAX_CHOICES:
        text += f" ({', '.join(_shown(choice) for choice in choices)})"
    default = _plain(_default(field))
    if default not in (None, False, "", [], {}) and "default" not in text.lower():
        text += f" (default: {default})"
    return text.replace("%", "%%").strip()
