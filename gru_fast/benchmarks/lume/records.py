"""LUME's rows as a model is asked about them, and, scored, as records.

The model is given the input as it is, without a template, and goes on greedily to its end of sequence. Of texts for
membership inference the mean loss over all tokens but the first is taken. Both as in the script of the task's
organizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.lume.rows import TEMPLATE
from gru_fast.data.hashes import joined_hash
from gru_fast.data.limits import Limits
from gru_fast.data.rows import Row, find_folder, load_rows
from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.data.templates import encode_prompt
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.record_folder import Unwritten

MEMBERS = ("member", "nonmember")
_KEPT = ("id", "task", "kind", "input", "output")


@dataclass(frozen=True)
class Question:
    """A row, and its input as tokens."""

    row: Row
    prompt: Prompt


def questions(tokenizer: Any, rows: Sequence[Row], max_new_tokens: int) -> list[Question]:
    """Rows of :func:`gru_fast.benchmarks.lume.load` as prompts."""
    return [Question(row, Prompt(encode_prompt(tokenizer, TEMPLATE, row["input"]), max_new_tokens)) for row in rows]


def load_members(tokenizer: Any, data: str | Path, max_rows: int | None = None) -> dict[str, list[Encoded]]:
    """The texts of ``member.jsonl`` and ``nonmember.jsonl`` (``document``) as tokens, every one a label.

    Args:
        data: a folder with both, such as ``mia_data`` of the data on the hub.
    """
    folder = find_folder(data)
    if folder is None:
        raise FileNotFoundError(f"mia_data: no folder {data}; download mia_data of the data on the hub")
    found: dict[str, list[Encoded]] = {}
    for name in MEMBERS:
        found[name] = []
        for index, row in enumerate(load_rows(folder, name, {"document": str})[:max_rows]):
            ids = encode_prompt(tokenizer, TEMPLATE, row["document"])
            if len(ids) < 2:
                raise ValueError(
                    f"{name}, row {index}: expected a text of two tokens and more, got {row['document']!r}"
                )
            found[name].append({"input_ids": ids, "labels": list(ids)})
    return found


def check(limits: Limits, name: str, asked: Sequence[Question]) -> None:
    """Refuses rows that a model cannot read, with what it may write."""
    for index, question in enumerate(asked):
        prompt = question.prompt
        limits.check(
            f"{name}, row {index}", prompt.ids, prompt.max_new_tokens, option=None, more_option="--max-new-tokens"
        )


def content(asked: Sequence[Question] | Sequence[Encoded]) -> str:
    """Hash of all that is asked and compared with: rows and tokenizer at once."""
    return joined_hash(
        f"{one.prompt.content} {one.row['output']}" if isinstance(one, Question) else content_hash(one) for one in asked
    )


def score_questions(asked: Sequence[Question]) -> list[Unwritten]:
    """The records of some rows: what the model writes after each."""
    return [unwritten(question.prompt, partial(_record, question)) for question in asked]


def score_members(scorer: Scorer, texts: Sequence[Encoded]) -> list[dict[str, Any]]:
    """The records of some texts: their losses."""
    return [{"loss": one.loss} for one in scorer.losses(texts)]


def _record(question: Question, text: str) -> dict[str, Any]:
    return {**{name: question.row[name] for name in _KEPT}, "generation": text}
