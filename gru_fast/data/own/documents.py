"""Documents: what they are, and how they come from files, folders and the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gru_fast.data.own import fields, reading
from gru_fast.data.own.reading import Source
from gru_fast.data.own.sources import find
from gru_fast.runs.files import write_text

Kind = Literal["text", "pair", "chat"]
_TWO = ("prompt", "completion")


@dataclass(frozen=True)
class Document:
    """A text, a question with its answer, or a conversation.

    Args:
        id: names it, the same every time it is loaded: the file, from the folder that was named on, and ``#row``.
        source: the file, as it was found; a data set on the hub as ``org/name:config:split``.
        row: of the file, from 0; None: the file is one document.
        kind: "text", "pair" or "chat".
        text: of a text, all of which is scored.
        question, answer: of a pair; the answer is scored.
        messages: of a chat: ``{"role": ..., "content": ..., "scored": bool}``; what the assistant says is scored.
        raw: of a pair: the question goes before the answer as it is, without the words of a template around it.
    """

    id: str
    source: str
    row: int | None
    kind: Kind
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    messages: list[dict[str, Any]] | None = None
    raw: bool = False

    @property
    def where(self) -> str:
        """The file and the row, for messages."""
        return self.source if self.row is None else f"{self.source}, row {self.row}"

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it says, in order."""
        if self.messages is not None:
            return tuple(message["content"] for message in self.messages)
        return tuple(part for part in (self.text, self.question, self.answer) if part is not None)


def load(
    sources: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
) -> list[Document]:
    """Documents of one source or several, in the order given; those of a folder by name.

    Args:
        sources: files (.txt, .md, .pdf, .docx: one document each; .jsonl, .json, .csv, .tsv, .parquet: one a row),
            folders with such files at any depth, globs (``leak/**/*.txt``), or data sets on the hub as
            ``org/name:config:split``. A file that is named twice is read once.
        columns: where the rows' fields have other names: ``{"question": "frage", "answer": "antwort"}``. Without it a
            row has ``text``; ``question`` and ``answer``; ``prompt`` and ``completion``; or ``messages``. A file that
            has none of the columns is read without them.
        split: of a data set on the hub that names none.

    Numbers, dates and booleans in a column stay the text that the file holds: ``007`` and ``1.50`` are not changed.

    Raises:
        FileNotFoundError: no such file; nothing matches a glob. ValueError: a file or row that cannot be read, with the
            file, the line or row, and the field. ImportError: a package for .pdf or .docx is missing.
    """
    fields.check_columns(columns)
    return [document for source in find(sources, split) for document in _documents(source, columns or {})]


def save(documents: Iterable[Document], path: str | Path) -> None:
    """Writes documents as JSON lines that :func:`load` takes back; their ids are then those of that file."""
    write_text(path, "".join(json.dumps(to_row(document), ensure_ascii=False) + "\n" for document in documents))


NUMBER = "number"  # of a row that a model wrote itself: which of its texts it is


def to_row(document: Document) -> dict[str, Any]:
    """The fields of a document, as a row of a file has them."""
    if document.kind == "text":
        return {"text": document.text}
    if document.kind == "pair":
        names = _TWO if document.raw else ("question", "answer")
        return dict(zip(names, (document.question, document.answer), strict=True))
    turns = [({"role": one["role"], "content": one["content"]}, one["scored"]) for one in document.messages or ()]
    if all(scored == (turn["role"] == "assistant") for turn, scored in turns):
        return {"messages": [turn for turn, _ in turns]}
    return {name: [turn for turn, scored in turns if scored == (name == "completion")] for name in _TWO}


def _documents(source: Source, columns: Mapping[str, str]) -> list[Document]:
    """The documents of a source. Where its rows have none of ``columns``, the fields have their own names."""
    content = reading.read(source)
    if isinstance(content, str):
        return [Document(source.id, source.name, None, "text", text=content)]
    names = {name for row in content if isinstance(row.value, dict) for name in row.value}
    is_ours = names.isdisjoint(columns.values()) and fields.has_form(content[0].value)
    use = {} if is_ours else columns
    # A model that chats writes answers and texts into one file.
    is_written = all(isinstance(row.value, dict) and NUMBER in row.value for row in content)
    form: fields.Form | None = None
    found = []
    for row in content:
        form, values = fields.read(row.value, row.where, use, None if is_written else form)
        found.append(Document(f"{source.id}#{row.index}", source.name, row.index, form.kind, **values))
    return found
