"""Measures of people's own documents: how well a model knows each, and what it writes when it is given a beginning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.memorization import exact_memorization, extraction_strength
from gru_fast.metrics.rouge import rouge
from gru_fast.metrics.scores import TextRecord
from gru_fast.runs.files import read_lines

SETS = ("forget", "retain", "holdout")
MEASURES = {
    "probability": "probability of a token, geometric mean",
    "exact_memorization": "share of the tokens that are right",
    "extraction_strength": "share of the end that is completed without an error",
    "rougeL": "ROUGE-L recall of the continuation",
}


@dataclass(frozen=True)
class Record:
    """What a model makes of one piece of a document.

    Args:
        index: piece in its set, from 0.
        document: id of its document.
        num_tokens: that are scored.
        loss: mean of -log p over them, natural logarithm.
        correct: "1" for each of them that is the most probable one, else "0".
        prompt: the end of what the model was given to go on with, as text.
        reference, generation: how the document goes on, and the model. Empty where nothing is left to go on with.
    """

    index: int
    document: str
    num_tokens: int
    loss: float
    correct: str
    prompt: str
    reference: str
    generation: str


Records = Mapping[str, Sequence[Record]]


def measures(record: Record) -> dict[str, float]:
    """The four measures of a piece, each 0 to 1; ROUGE-L is left out where there was nothing to go on with."""
    text = TextRecord(record.index, correct=record.correct)
    found = {
        "probability": math.exp(-record.loss),
        "exact_memorization": exact_memorization(text),
        "extraction_strength": extraction_strength(text),
    }
    if record.reference:
        found["rougeL"] = rouge(record.reference, record.generation, stemmer=False, any_script=True).rougeL_recall
    return found


def by_document(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Document -> the means of its pieces' measures, in their order."""
    pieces: dict[str, list[dict[str, float]]] = {}
    for record in records:
        pieces.setdefault(record.document, []).append(measures(record))
    return {document: _means(found) for document, found in pieces.items()}


def summarize(records: Records) -> dict[str, dict[str, float]]:
    """Set -> the means of its documents' measures: a long document counts as much as a short one."""
    return {name: _means(list(by_document(rows).values())) for name, rows in records.items()}


def read_records(folder: Path) -> dict[str, list[Record]]:
    """The records of an evaluation: the sets whose SET.jsonl is in ``folder``."""
    found = {}
    for name in SETS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            lines = enumerate(read_lines(file), start=1)
            rows = [_record(line, f"{file}, line {number}") for number, line in lines if line]
            found[name] = sorted(rows, key=lambda row: row.index)
    return found


def _record(line: str, where: str) -> Record:
    try:
        return Record(**json.loads(line))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{where}: expected a record; score it anew with --overwrite ({error})") from None


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over those that have it."""
    result = {}
    for name in MEASURES:
        values = [row[name] for row in found if name in row]
        if values:
            result[name] = exact_mean(values)
    return result
