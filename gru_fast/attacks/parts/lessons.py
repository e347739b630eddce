"""What a model is taught in the attack relearn: a part of the forget set, text near it, harmless text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gru_fast.attacks.parts.questions import rows
from gru_fast.attacks.parts.target import Target
from gru_fast.data.rows import check_row, read_json_rows
from gru_fast.data.sequences import Encoded
from gru_fast.data.templates import Template, encode_prompt, encode_rows

FORGET, NEAR, HARMLESS = SOURCES = ("forget", "near", "harmless")
_MOST = 4000  # rows to forget, and to keep, among which near ones are looked for
_LENGTH = 512  # tokens of a text of the user's, where the benchmark has no length
_TEXT = Template("text")


def lessons(
    target: Target, tokenizer: Any, template: Template, source: str, count: int, seed: int, file: str | None = None
) -> list[Encoded]:
    """``count`` rows to teach, or as many as there are.

    Args:
        source: "forget": :func:`taught` of the rows to forget. "near": of the rows to keep, those that share most words
            with a row to forget. "harmless": of the rows to keep, some at random.
        file: of near or harmless text of the user's own, in the place of rows to keep, see :func:`read_lessons`.
    """
    if source == FORGET:
        forget = rows(target, tokenizer, template).forget
        return [forget[index] for index in taught(len(forget), count, seed)]
    if file is not None:
        found = _encoded(target, tokenizer, template, read_lessons(Path(file)))
        return [found[index] for index in _drawn(len(found), count, seed)]
    data = rows(target, tokenizer, template, ("forget", "retain"))
    if source == HARMLESS:
        return [data.retain[index] for index in _drawn(len(data.retain), count, seed)]
    forget, kept = ([of[index] for index in range(min(len(of), _MOST))] for of in (data.forget, data.retain))
    return [kept[index] for index in nearest(forget, kept, count)]


def taught(num_rows: int, count: int, seed: int) -> list[int]:
    """The rows to forget that are taught; the others are asked about.

    Raises:
        ValueError: none would be left.
    """
    if count >= num_rows:
        raise ValueError(
            f"relearn_rows: expected fewer than the {num_rows} rows to forget, since the others are asked about, got "
            f"{count}"
        )
    return _drawn(num_rows, count, seed)


def nearest(forget: Sequence[Encoded], kept: Sequence[Encoded], count: int) -> list[int]:
    """The rows of ``kept`` that are most like some row of ``forget``, the nearest first.

    By the cosine of their tokens, each weighted by ln(n / rows that have it): what all rows share counts nothing.
    """
    from scipy import sparse

    places = [np.unique(row["input_ids"]) for row in (*forget, *kept)]
    tokens, columns = np.unique(np.concatenate(places), return_inverse=True)
    lines = np.repeat(np.arange(len(places)), [len(place) for place in places])
    weights = np.log(len(places) / np.bincount(columns, minlength=len(tokens)))
    table = sparse.csr_matrix((weights[columns], (lines, columns)), shape=(len(places), len(tokens)))
    norms = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    table = sparse.diags(1 / np.where(norms > 0, norms, 1)) @ table
    alike = np.asarray((table[: len(forget)] @ table[len(forget) :].T).max(axis=0).todense()).ravel()
    return [int(index) for index in np.argsort(-alike, kind="stable")[:count]]


def read_lessons(path: Path) -> list[dict[str, str]]:
    """Rows of a file: JSON objects, one a line, each with "question" and "answer", or with "text".

    Raises:
        FileNotFoundError: no such file. ValueError: a line that is neither, or none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    found: list[dict[str, str]] = read_json_rows(path)
    if not found:
        raise ValueError(f"{path}: expected rows, got an empty file")
    for number, row in enumerate(found, start=1):
        is_text = isinstance(row, dict) and "text" in row
        check_row(row, {"text": str} if is_text else {"question": str, "answer": str}, f"{path}, line {number}")
    return found


def _encoded(target: Target, tokenizer: Any, template: Template, found: Sequence[dict[str, str]]) -> list[Encoded]:
    length = getattr(target.data, "max_length", None) or _LENGTH
    encoded: list[Encoded] = []
    for row in found:
        if "text" in row:
            ids = encode_prompt(tokenizer, _TEXT, row["text"])[:length]
            encoded.append({"input_ids": ids, "labels": list(ids)})
        else:
            encoded += encode_rows(tokenizer, template, [(row["question"], row["answer"])], length)
    return encoded


def _drawn(num_rows: int, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(num_rows), min(count, num_rows)))
