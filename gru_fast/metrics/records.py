"""What an evaluation on TOFU keeps of every example. Scoring writes these records, metrics read nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

SETS = ("forget", "retain", "real_authors", "world_facts")


@dataclass(frozen=True)
class Record:
    """One question of one set. Losses are means of -log p over label tokens, natural logarithm.

    A field that a published log does not hold is None; a metric that needs it says so.

    Args:
        index: row in its set, from 0.
        question, answer: plain text, without a prompt's frame.
        answer_loss: loss of the true answer; num_tokens: its label tokens, EOS included.
        paraphrase_loss: of the paraphrased answer; real authors and world facts have none, and take the answer's.
        perturbed_losses: one per wrong answer.
        generation: what the model answers, greedily.
        rouge1_recall, rougeL_recall: of the generation against the answer, 0 to 1.
        paraphrase_num_tokens, perturbed_num_tokens: label tokens of those answers.
    """

    index: int
    question: str | None = None
    answer: str | None = None
    answer_loss: float | None = None
    num_tokens: int | None = None
    paraphrase_loss: float | None = None
    perturbed_losses: tuple[float, ...] | None = None
    generation: str | None = None
    rouge1_recall: float | None = None
    rougeL_recall: float | None = None  # noqa: N815 (the published name)
    paraphrase_num_tokens: int | None = None
    perturbed_num_tokens: tuple[int, ...] | None = None


Records = dict[str, list[Record]]  # set (SETS) -> its records, by index
_R = TypeVar("_R")
_FIELDS = {field.name for field in dataclasses.fields(Record)}


def rows_of(records: Mapping[str, Sequence[_R]], name: str, what: str, whose: str = "") -> Sequence[_R]:
    """The records of a set. ValueError where there are none, by ``what`` needs them and of ``whose`` model they are."""
    rows = records.get(name)
    if not rows:
        have = ", ".join(known for known, found in records.items() if found) or "none"
        raise ValueError(f"{whose}{what} needs the {name} set; the records hold {have}")
    return rows


def to_json(record: Record) -> dict[str, Any]:
    """A record as one JSON object."""
    return dataclasses.asdict(record)


def from_json(rows: Iterable[Mapping[str, Any]], where: str) -> list[Record]:
    """Records from JSON objects, sorted by index. ``where``: for messages.

    Raises ValueError on objects that are no records, and on an index that comes twice.
    """
    found: dict[int, Record] = {}
    for number, row in enumerate(rows):
        unknown = sorted(set(row) - _FIELDS)
        if unknown or "index" not in row:
            raise ValueError(
                f"{where}: object {number}: expected a record with the fields of gru_fast.metrics.records.Record, got "
                + (f"{', '.join(unknown)} as well" if unknown else "no index")
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        record = Record(**values)
        if record.index in found:
            raise ValueError(f"{where}: row {record.index} comes twice")
        found[record.index] = record
    return [found[index] for index in sorted(found)]
