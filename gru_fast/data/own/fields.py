"""The fields of a row: which document they make, as TRL knows them.

text                    a text, all of it scored
question, answer        a pair: the question in the words of the model's template, the answer scored
prompt, completion      a pair without template, the completion scored; where they are lists of messages, a chat of
                        which the completion is scored
messages                a chat, of which the assistant's turns are scored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gru_fast.data.rows import is_unicode
from gru_fast.runs.messages import nearest

Values = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What a row can be. ``fields``: all of them must be there."""

    kind: Literal["text", "pair", "chat"]
    fields: tuple[str, ...]


FORMS = (
    Form("text", ("text",)),
    Form("pair", ("question", "answer")),
    Form("pair", ("prompt", "completion")),
    Form("chat", ("messages",)),
)
NAMES = tuple(name for form in FORMS for name in form.fields)
_CHAT_OF_TWO = Form("chat", ("prompt", "completion"))
_ROLES = ("system", "developer", "user", "assistant", "tool")


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Refuses names of fields that no form has, and fields that make no form."""
    if not columns:
        return
    for name, column in columns.items():
        if name not in NAMES:
            raise ValueError(f'columns: expected fields of {", ".join(NAMES)}, got "{name}"{nearest(name, NAMES)}')
        if not isinstance(column, str) or not column:
            raise ValueError(f"columns: {name}: expected the name of a column, got {column!r}")
    if not any({*form.fields} >= {*columns} for form in FORMS):
        raise ValueError(f"columns: {', '.join(columns)} do not go together; give {_forms()}")


def has_form(row: Any) -> bool:
    """Whether a row has the fields of a form, under their own names."""
    return isinstance(row, Mapping) and any(all(name in row for name in form.fields) for form in FORMS)


def read(
    row: Any, where: str, columns: Mapping[str, str] | None = None, expected: Form | None = None
) -> tuple[Form, Values]:
    """The form of a row, and what a document has of it.

    Args:
        where: the file and row, for messages.
        columns: field -> the name that the file has for it.
        expected: the form of the rows before.

    Raises:
        ValueError: no object; fields that make no document, or more than one; a field that is missing, empty, no text.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with fields, got {_shown(row)}")
    form = _form(row, where, columns or {})
    values = {name: row[(columns or {}).get(name, name)] for name in form.fields}
    labels = {name: f'{where}: field "{(columns or {}).get(name, name)}"' for name in form.fields}
    if form.fields == ("messages",):
        found: Values = {"messages": _messages(values["messages"], labels["messages"])}
        if not any(message["scored"] for message in found["messages"]):
            raise ValueError(f"{labels['messages']}: expected a turn of the assistant to be scored, got none")
    elif form.fields == ("prompt", "completion") and not isinstance(values["prompt"], str):
        form = _CHAT_OF_TWO
        before = [{**one, "scored": False} for one in _messages(values["prompt"], labels["prompt"])]
        after = [{**one, "scored": True} for one in _messages(values["completion"], labels["completion"])]
        found = {"messages": [*before, *after]}
    else:
        found = dict(zip(_ATTRIBUTES[form.kind], (_text(values[n], labels[n]) for n in form.fields), strict=True))
        if "prompt" in form.fields:
            found["raw"] = True
    if expected is not None and form != expected:
        raise ValueError(
            f"{where}: expected {' and '.join(expected.fields)}, as in the rows before, got a row with "
            f"{' and '.join(form.fields)}; put rows of one kind in a file"
        )
    return form, found


_ATTRIBUTES = {"text": ("text",), "pair": ("question", "answer")}


def _form(row: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> Form:
    """The one form that the row's fields make: the fields of ``columns``, or else those of their own names."""
    if columns:
        missing = next((column for column in columns.values() if column not in row), None)
        if missing is not None:
            raise ValueError(
                f'{where}: expected a field "{missing}", as --columns says, got {_names(row)}{nearest(missing, row)}'
            )
        given = {name: columns.get(name, name) for name in NAMES}
        wanted = [form for form in FORMS if {*columns} <= {*form.fields}]
    else:
        given = {name: name for name in NAMES}
        wanted = list(FORMS)
    whole = [form for form in wanted if all(given[name] in row for name in form.fields)]
    if len(whole) > 1:
        several = "; ".join(" and ".join(form.fields) for form in whole)
        raise ValueError(
            f"{where}: has the fields of several kinds of rows ({several}); say which is meant: --columns "
            f"{' '.join(f'{name}={name}' for name in whole[0].fields)}"
        )
    if whole:
        return whole[0]
    half = next((form for form in wanted if any(given[name] in row for name in form.fields)), None)
    if half is not None:
        missing = next(name for name in half.fields if given[name] not in row)
        there = next(given[name] for name in half.fields if name != missing)
        raise ValueError(
            f'{where}: expected a field "{missing}" beside "{there}", got {_names(row)}; where it has another name: '
            f"--columns {missing}=NAME"
        )
    raise ValueError(
        f"{where}: expected {_forms()}, got {_names(row)}; say which is which: --columns question=NAME answer=NAME"
    )


def _forms() -> str:
    forms = [" and ".join(form.fields) for form in FORMS]
    return f"{', '.join(forms[:-1])}, or {forms[-1]}"


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "no fields"


def _text(value: Any, label: str) -> str:
    if isinstance(value, bool):
        value = "true" if value else "false"  # as JSON writes it
    if not isinstance(value, str):
        raise ValueError(f"{label}: expected a text, got {_shown(value)}")
    if not value.strip():
        raise ValueError(f"{label}: expected a text, got an empty one; fill it or leave the row out")
    if not is_unicode(value):
        raise ValueError(
            f"{label}: expected Unicode, got half of a surrogate pair in {_shown(value)}; write the character whole, "
            "or take it out"
        )
    return value


def _messages(value: Any, label: str) -> list[dict[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{label}: expected a list of messages with role and content, got {_shown(value)}")
    return [_message(message, f"{label}, message {index}") for index, message in enumerate(value)]


def _message(message: Any, label: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{label}: expected role and content, got {_shown(message)}")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise ValueError(f"{label}: expected the role {', '.join(_ROLES)}, got {_shown(role)}")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _joined(content, label)
    if message.get("tool_calls"):
        raise ValueError(f"{label}: calls of tools cannot be read; write them into the content, or leave the row out")
    return {"role": role, "content": _text(content, f"{label}: content"), "scored": role == "assistant"}


def _joined(parts: Sequence[Any], label: str) -> str:
    """A content of parts, ``[{"type": "text", "text": ...}]``, as one text."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{label}: content: expected parts of text alone, got {_shown(part)}")
    return "".join(part["text"] for part in parts)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
