"""Retain data that the model writes itself, where nobody has any: what it says now is what it should go on saying.

Sampled as by Carlini et al. 2021 (arXiv 2012.07805, section 4.1.1): from nothing or from the first words of a text, of
the ``top_k`` most probable tokens, at a temperature that begins high, so that texts differ, and decays to 1. Models
with a chat template are asked questions, in that template. What shares a long run of words with the documents to forget
is dropped, and so is what repeats itself or another text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gru_fast.data.hashes import hash_of
from gru_fast.data.ngrams import Known, repetition, words_of
from gru_fast.data.own import fields
from gru_fast.data.own.documents import NUMBER, Document, to_row
from gru_fast.data.rows import read_json_rows
from gru_fast.data.sampling import SOURCE, Sampling, Writer, default_openings, default_questions, is_chat
from gru_fast.data.templates import Template
from gru_fast.runs.files import read_json, write_json, write_text
from gru_fast.runs.progress import progress_bar

__all__ = ["Rules", "Sampling", "describe", "write_retain"]

KEPT, SHORT, REPETITIVE, COPIES, SHARED = "kept", "short", "repetitive", "copies", "shared"
WHY = {
    SHORT: "too short",
    REPETITIVE: "repeat themselves",
    COPIES: "like one before",
    SHARED: "share a run of words with the forget set",
}


@dataclass(frozen=True)
class Rules:
    """What is dropped.

    Args:
        ngram: a text that has so many words in a row with a document to forget.
        min_words: a text of fewer words.
        max_repetition: a text more of whose runs of four words were in it before than this share.
        max_copied: a text more of whose runs of ``ngram`` words were in texts before than this share.
    """

    ngram: int = 8
    min_words: int = 16
    max_repetition: float = 0.3
    max_copied: float = 0.5

    def __post_init__(self) -> None:
        if self.ngram < 2:
            raise ValueError(f"ngram: expected at least 2 words, got {self.ngram}")


def write_retain(
    model: Any,
    tokenizer: Any,
    template: Template,
    count: int,
    seed: int,
    *,
    forget: Sequence[Document],
    batch_size: int = 8,
    sampling: Sampling | None = None,
    rules: Rules | None = None,
    openings: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    tries: int = 4,
    file: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[list[Document], dict[str, int]]:
    """``count`` documents that the model writes, and how many were written, kept, and dropped for which reason.

    A text is a pure function of the model, ``seed`` and its number: the batch size does not change it but by rounding,
    nor does a stop. A model without chat template writes texts. One with a template answers questions; where a document
    to forget is a text, every second one is a text all the same, since texts are what will be trained on.

    Args:
        model: a causal LM with ``generate``, on its device; in eval mode meanwhile.
        template: of the model's prompts.
        seed: of everything that is drawn.
        forget: what must not come back in.
        batch_size: texts written at a time.
        openings: how texts begin, "" for nothing; by default nothing every second time, else an English word or two.
        questions: for models with a chat template; by default some hundreds in English.
        tries: at most ``tries * count`` are written.
        file: JSON lines for the documents, kept up to date: a call after a stop goes on, one after the end only reads.
            What was dropped is counted in the ``.json`` of that name.
        about: what else a file depends on, such as the fingerprint of the model: another one is not gone on with.
        progress: show a bar.

    Returns:
        The documents, fewer than ``count`` where too many were dropped, and the counts: "written", "kept", "short",
        "repetitive", "copies", "shared".

    Raises:
        ValueError: a file of other settings; RuntimeError: all that the model wrote was dropped.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    writer = Writer(
        model,
        tokenizer,
        template,
        sampling or Sampling(),
        tuple(openings) if openings else default_openings(),
        tuple(questions) if questions else default_questions(),
        seed,
        with_texts=not is_chat(template) or any(document.kind == "text" for document in forget),
    )
    sieve = _Sieve(rules or Rules(), forget)
    # Salted, so that nobody can try texts from a list against the file.
    salt = _Shelf.salt_of(file) or secrets.token_hex(16)
    settings = {
        "count": count,
        "seed": seed,
        "tries": tries,
        "sampling": asdict(writer.sampling),
        "rules": asdict(sieve.rules),
        "prompts": hash_of([*writer.openings, *writer.questions]),
        "salt": salt,
        "forget": hash_of([salt, *(text for document in forget for text in document.texts)]),
        "about": dict(about or {}),
    }
    shelf = _Shelf(None if file is None else Path(file), settings)
    for document in shelf.documents:
        sieve.add(document)
    with progress_bar(
        count, "writing retain texts", unit="text", initial=len(shelf.documents), shown=progress
    ) as advance:
        while len(shelf.documents) < count and shelf.written < tries * count:
            before = len(shelf.documents)
            some = min(4 * batch_size, count - before)
            numbers = range(shelf.written, min(shelf.written + some, tries * count))
            for number, document in zip(numbers, writer.write(numbers, batch_size), strict=True):
                if len(shelf.documents) < count:
                    shelf.put(number, document, sieve.judge(document))
            shelf.save()
            advance(len(shelf.documents) - before)
    if not shelf.documents:
        raise RuntimeError(
            f"the model writes nothing to keep it by: of {shelf.written} texts, {describe(shelf.counts)}; give "
            "documents with --retain"
        )
    return shelf.documents, shelf.counts


def read_written(file: str | Path) -> list[Document]:
    """The documents that :func:`write_retain` wrote into a file; a model that chats writes texts and answers."""
    found = []
    for index, row in enumerate(read_json_rows(Path(file))):
        form, values = fields.read(row, f"{file}, row {index}")
        found.append(Document(f"{SOURCE}#{row[NUMBER]}", SOURCE, row[NUMBER], form.kind, **values))
    return found


def describe(counts: Mapping[str, int]) -> str:
    """The counts of :func:`write_retain` in words.

    >>> describe({"written": 9, "kept": 7, "short": 0, "repetitive": 2, "copies": 0, "shared": 0})
    '7 kept, 2 repeat themselves'
    """
    dropped = [f"{counts[key]} {why}" for key, why in WHY.items() if counts[key]]
    return ", ".join([f"{counts[KEPT]} kept", *dropped])


# ---- dropping --------------------------------------------------------------------------------------------------------


class _Sieve:
    """Tells which documents are kept, in the light of those to forget and of those before."""

    def __init__(self, rules: Rules, forget: Sequence[Document]) -> None:
        self.rules = rules
        self._forget = Known(rules.ngram)
        for document in forget:
            for text in document.texts:
                self._forget.add(words_of(text), whole_if_short=True)
        self._before = Known(rules.ngram)

    def judge(self, document: Document) -> str:
        """Why a document is dropped, or that it is kept; it then counts as one before."""
        words = words_of(document.texts[-1])
        if len(words) < self.rules.min_words:
            return SHORT
        if repetition(words) > self.rules.max_repetition:
            return REPETITIVE
        if self._forget.any_in(words):
            return SHARED
        if self._before.share_of(words) > self.rules.max_copied:
            return COPIES
        self.add(document)
        return KEPT

    def add(self, document: Document) -> None:
        self._before.add(words_of(document.texts[-1]))


# ---- keeping ---------------------------------------------------------------------------------------------------------


class _Shelf:
    """What was written so far, in memory and, where asked for, in two files: documents, and settings with counts.

    The second is written last: documents in the first that it does not count are of a write that was cut off.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.settings = dict(settings)
        self.documents: list[Document] = []
        self.counts = {"written": 0, KEPT: 0, **dict.fromkeys(WHY, 0)}
        if file is not None and self._state(file).is_file():
            self._read(file)

    @property
    def written(self) -> int:
        return self.counts["written"]

    def put(self, number: int, document: Document, why: str) -> None:
        self.counts["written"] = number + 1
        self.counts[why] += 1
        if why == KEPT:
            self.documents.append(document)

    def save(self) -> None:
        if self.file is None:
            return
        rows = ({NUMBER: each.row, **to_row(each)} for each in self.documents)
        write_text(self.file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_json(self._state(self.file), {"settings": self.settings, "counts": self.counts})

    @classmethod
    def salt_of(cls, file: str | Path | None) -> str | None:
        """The salt of the hash of documents in a file that is there."""
        state = None if file is None else cls._state(Path(file))
        return read_json(state)["settings"].get("salt") if state is not None and state.is_file() else None

    @staticmethod
    def _state(file: Path) -> Path:
        return file.with_suffix(".json")

    def _read(self, file: Path) -> None:
        state = read_json(self._state(file))
        for key, value in self.settings.items():
            if state["settings"].get(key) != value:
                raise ValueError(
                    f"{file}: was written with another {key} ({state['settings'].get(key)!r}, not {value!r}); delete "
                    "it to have texts written anew"
                )
        self.counts = state["counts"]
        found = read_written(file) if self.counts[KEPT] else []
        self.documents = [document for document in found if int(document.row or 0) < self.counts["written"]]
