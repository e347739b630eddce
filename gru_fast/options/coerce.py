"""From the text of a flag, or a value of a YAML file, to what a dataclass field holds."""

from __future__ import annotations

import enum
import json
import math
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from gru_fast.runs import messages

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def members(hint: Any) -> tuple[Any, ...]:
    """The types a type hint allows, unions taken apart: ``members(dict | str | None) == (dict, str, NoneType)``."""
    if get_origin(hint) in {Union, types.UnionType}:
        return tuple(member for part in get_args(hint) for member in members(part))
    return (get_origin(hint) if get_origin(hint) in {list, dict} else hint,)


def choices_of(hint: Any, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a field may hold, where that is a list: metadata "choices", the values of an enum or of a Literal."""
    if metadata.get("choices"):
        return tuple(metadata["choices"])
    found: list[Any] = []
    for member in members(hint):
        if isinstance(member, type) and issubclass(member, enum.Enum):
            found += [item.value for item in member]
        elif get_origin(member) is Literal:
            found += get_args(member)
    return tuple(found)


def coerce(value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """``value`` as one of the types of ``hint``: a text is read, anything else must fit.

    A mapping is read from JSON or from texts ``key=value``, a list from JSON or from texts. Enums stay the text that
    names them. "null" is None where that is allowed; "none" too, unless it may be an ordinary text.

    Raises:
        ValueError: "expected ..., got ...", without the name of the field.
    """
    allowed = members(hint)
    if _is_none(value, allowed):
        return None
    choices = choices_of(hint, metadata)
    # An enum among other types (TrainingArguments' `SchedulerType | str`) is as closed as one alone.
    if choices:
        return _one_of(value, choices, allowed)
    for member, read in _READERS.items():
        if member in allowed:
            found = read(value)
            if found is not None:
                return found
    raise ValueError(f"expected {_describe(allowed)}, got {_shown(value)}")


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean "x"?`, or nothing where no known name is near."""
    return messages.nearest(messages.as_identifier(name), known, before="; ")


def _is_none(value: Any, allowed: tuple[Any, ...]) -> bool:
    if type(None) not in allowed:
        return False
    words = ("null",) if str in allowed else ("null", "none")
    return value is None or (isinstance(value, str) and value.lower() in words)


def _one_of(value: Any, choices: tuple[Any, ...], allowed: tuple[Any, ...]) -> Any:
    if list in allowed and isinstance(value, list):
        return [_one_of(item, choices, ()) for item in value]
    if isinstance(value, enum.Enum):
        value = value.value
    # Not `in`: True == 1, and a text is never equal to a number.
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
        if isinstance(value, str) and not isinstance(choice, str) and str(choice).lower() == value.lower():
            return choice
    if bool in allowed and (flag := _bool(value)) is not None:
        return flag
    hint = nearest(str(value), [choice for choice in choices if isinstance(choice, str)])
    raise ValueError(
        f"expected one of {', '.join('none' if c is None else str(c) for c in choices)}, got {_shown(value)}{hint}"
    )


def _bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return True if value.lower() in _TRUE else False if value.lower() in _FALSE else None
    return value if isinstance(value, bool) else None


def _int(value: Any) -> int | None:
    number = _float(value)
    # Through float first, so that 1e3 and 5.0 serve; int() again for what a float cannot hold exactly.
    if number is None or not math.isfinite(number) or number != int(number):
        return None
    try:
        return int(value)
    except ValueError:
        return int(number)


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _dict(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    if len(texts) == 1 and texts[0].lstrip().startswith("{"):
        try:
            found = json.loads(texts[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"expected a JSON object, got {_shown(texts[0])} ({error})") from None
        return dict(found)
    if not all("=" in text for text in texts):
        return None
    pairs = (text.split("=", 1) for text in texts)
    return {key.strip(): read_yaml(text) for key, text in pairs}


def _list(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = read_yaml(value)
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# In the order they are tried: what fewer texts fit comes first.
_READERS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, dict: _dict, str: _str, list: _list}
_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list",
    dict: "key=value or JSON", type(None): "null",
}  # fmt: skip


def _describe(allowed: tuple[Any, ...]) -> str:
    return " or ".join(_NAMES.get(member, getattr(member, "__name__", str(member))) for member in allowed)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


class _Loader(yaml.SafeLoader):
    """YAML as 1.2 has it where 1.1 surprises: 1e-5 is a number and `no` a word; and a key must not come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f'line {key_node.start_mark.line + 1}: "{key}" is there twice')
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _resolve(tag: str, pattern: str, first: str) -> None:
    import re

    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve(
    "float",
    r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.nan$",
    "-+.0123456789",
)


def read_yaml(text: str) -> Any:
    """A YAML document, in the reading of YAML 1.2: ``read_yaml("1e-5") == 1e-5`` and ``read_yaml("no") == "no"``.

    Raises:
        ValueError: not YAML, or a key that is there twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
