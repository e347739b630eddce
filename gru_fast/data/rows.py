"""Rows of a data set, from the hub or from a folder of JSON-lines files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.runs.files import read_text
from gru_fast.runs.messages import first_line, nearest

Row = dict[str, Any]


class Literal(str):
    """A number of a JSON file, as it is written there."""

    __slots__ = ()


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".json", ".jsonl")


def load_rows(
    data: str | Path, name: str, fields: Mapping[str, type], *, split: str = "train", even: Sequence[str] = ()
) -> list[Row]:
    """Rows called ``name``, in their published order, each checked to have ``fields``.

    Args:
        data: a folder that holds ``NAME.json`` or ``NAME.jsonl`` (one JSON object a line, or one list), or the name of
            a data set on the hub ("locuslab/TOFU") that has a config ``name``. A folder of that name wins.
        name: of the file or config.
        fields: what every row must have: ``str``, or ``list`` for a non-empty list of texts. Further fields are kept.
        split: of the hub's config; a folder has one file a name.
        even: lists among them that are as long in every row.

    Raises:
        FileNotFoundError: no such folder; no such file or config, with those that are there; the hub out of reach.
        ValueError: not UTF-8, not JSON, no rows, a field missing or of another kind, a text that is no Unicode, lists
            of different lengths; with the file or config and the row.
    """
    folder = find_folder(data)
    if folder is not None:
        path = _file_of(folder, name)
        rows, source = read_json_rows(path), str(path)
    else:
        rows, source = _load_from_hub(str(data), name, split), f'{data}, config "{name}"'
    if not rows:
        raise ValueError(f"{source}: expected rows, got an empty file; write or download it again")
    for index, row in enumerate(rows):
        check_row(row, fields, f"{source}, row {index}")
        for field in even:
            if len(row[field]) != len(rows[0][field]):
                raise ValueError(
                    f'{source}, row {index}: field "{field}": expected {len(rows[0][field])} texts, as in row 0, got '
                    f"{len(row[field])}"
                )
    return rows


def find_folder(data: str | Path) -> Path | None:
    """The folder that ``data`` names, or None for a hub name. FileNotFoundError where it can be neither."""
    folder = Path(data).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise NotADirectoryError(
            f"data: expected a folder of JSON files, got the file {data}; pass the folder it is in"
        )
    if isinstance(data, Path) or not _HUB_NAME.fullmatch(data) or data.startswith("."):
        raise FileNotFoundError(f'data: no folder "{data}"; pass a folder, or a hub name such as locuslab/TOFU')
    return None


def names_in_folder(folder: Path) -> list[str]:
    """Names of the JSON files in a folder, sorted."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in _SUFFIXES})


def read_json_rows(path: Path) -> list[Any]:
    """Reads one JSON value a line, or a file that is one JSON list. Blank lines are skipped."""
    return [value for _, value in placed_json_rows(path)]


def placed_json_rows(path: Path, *, literal: bool = False) -> list[tuple[str, Any]]:
    """The rows of :func:`read_json_rows`, each with its place: "line 7", or of a list "row 6".

    Args:
        literal: numbers stay the text that the file holds, such as ``"1.50"``, as :class:`Literal`.
    """
    kept: dict[str, Any] = {f"parse_{kind}": Literal for kind in ("int", "float", "constant")} if literal else {}
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            return [(f"row {index}", value) for index, value in enumerate(json.loads(text, **kept))]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: expected a JSON list, got {error.msg}") from None
    rows = []
    # Not splitlines(): JSON texts may hold U+2028 and other separators unescaped, which would break a row in two.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line, **kept)))
        except json.JSONDecodeError as error:
            got = f"expected a JSON object, got {_shorten(line)!r} ({error.msg})"
            problem = _problem_of_lines("\n".join(lines[number - 1 :])) or got
            raise ValueError(f"{path}, line {number}: {problem}") from None
    return rows


def _problem_of_lines(text: str) -> str:
    """What is wrong where a text begins with an object of several lines; nothing if it does not."""
    text = text.lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return ""
    count = text.count("\n", 0, end) + 1
    return f"expected one JSON object a line, got one of {count} lines; write them so (jq -c . FILE), or as one list"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _file_of(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    known = names_in_folder(folder)
    if not known:
        expected = " or ".join(f"{name}{suffix}" for suffix in _SUFFIXES)
        raise FileNotFoundError(f"data: {folder} has no JSON files; expected {expected} in it")
    raise FileNotFoundError(f'data: {folder} has {", ".join(known)}, but no "{name}"{nearest(name, known)}')


def check_row(row: Any, fields: Mapping[str, type], where: str) -> None:
    """Refuses what is no object, lacks one of ``fields``, or has a text that is no Unicode; see :func:`load_rows`.

    Args:
        where: the file or config and the row, for messages.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with {', '.join(fields)}, got {type(row).__name__}")
    for field, kind in fields.items():
        if field not in row:
            raise ValueError(f'{where}: expected a field "{field}", got {", ".join(row) or "none"}')
        value = row[field]
        if kind is list:
            if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
                raise ValueError(f'{where}: field "{field}": expected a list of texts, got {value!r}')
        elif not isinstance(value, kind):
            raise ValueError(f'{where}: field "{field}": expected a text, got {value!r}')
    for field, value in row.items():
        for text in _texts(value):
            if not is_unicode(text):
                raise ValueError(
                    f'{where}: field "{field}": expected Unicode, got half of a surrogate pair in {_shorten(text)!r}; '
                    "write the character whole, or take it out"
                )


def _texts(value: Any) -> Iterator[str]:
    """The texts in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded. JSON's escapes can say half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _load_from_hub(data: str, name: str, split: str) -> list[Row]:
    import datasets

    try:
        return datasets.load_dataset(data, name, split=split).to_list()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'data: "{data}" is neither a folder here nor a data set on the hub ({first_line(error)})'
        ) from None
    except OSError as error:  # every way in which the hub cannot be reached
        raise ConnectionError(
            f'data: cannot get "{name}" of "{data}" from the hub ({first_line(error)}), and no folder has that name; '
            "check the connection, or pass the folder that holds a copy"
        ) from None
    except ValueError as error:  # no such config, no such split of it
        known = _hub_configs(data)
        if name in known or not known:
            raise ValueError(f'{data}, config "{name}": {first_line(error)}') from None
        raise FileNotFoundError(f'data: {data} has {", ".join(known)}, but no "{name}"{nearest(name, known)}') from None


def _hub_configs(data: str) -> list[str]:
    """Configs of a data set on the hub; none where the hub cannot be asked."""
    import datasets

    try:
        return sorted(datasets.get_dataset_config_names(data))
    except (OSError, ValueError):
        return []
