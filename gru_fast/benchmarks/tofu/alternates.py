"""Other answers to the questions to forget, of each its own, for AltPO (Mekala et al. 2024, arXiv 2409.13474).

A file of JSON lines, in the layout of the unified framework's generator: ``question``, ``answer`` and ``alternate``, a
question as often as it has other answers. ``gru-fast write-alternates`` makes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gru_fast.data.rows import Row, read_json_rows
from gru_fast.data.sequences import Encoded
from gru_fast.data.templates import Template, encode
from gru_fast.runs.files import write_text

FILE = "alternates.jsonl"


@dataclass(frozen=True)
class AlternateRows:
    """``rows(i, draw)``: question i with its other answer number ``draw`` modulo their count, tokenized.

    Pure and picklable, as :class:`gru_fast.benchmarks.tofu.IdkRows`.
    """

    tokenizer: Any
    template: Template
    questions: Sequence[str]
    alternates: Sequence[Sequence[str]]
    max_length: int

    def __call__(self, index: int, draw: int) -> Encoded:
        answers = self.alternates[index]
        return encode(
            self.tokenizer, self.template, self.questions[index], answers[draw % len(answers)], self.max_length
        )


def write(file: Path, rows: Sequence[Mapping[str, str]]) -> int:
    """Writes rows with ``question``, ``answer`` and ``alternate``; returns how many questions have no other answer."""
    write_text(file, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))
    asked = {(row["question"], row["answer"]) for row in rows}
    return len(asked - {(row["question"], row["answer"]) for row in rows if _is_other(row["answer"], row["alternate"])})


def read_alternates(path: str | Path, rows: Sequence[Row]) -> list[list[str]]:
    """The other answers to each of some rows, in the order of the file; what says the same as the true one is dropped.

    Args:
        path: the file, or the folder that `gru-fast write-alternates` has left.
        rows: to forget. A question may occur twice with different answers: both count.

    Raises:
        FileNotFoundError: no such file. ValueError: a line without the three texts; a row without another answer.
    """
    path = Path(path).expanduser()
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"alternates: no file {file}; make it with gru-fast write-alternates")
    found: dict[tuple[str, str], list[str]] = {}
    for number, row in enumerate(read_json_rows(file), start=1):
        texts = [row.get(name) for name in ("question", "answer", "alternate")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{file}: object {number}: expected texts question, answer and alternate, got {row!r}")
        question, answer, alternate = map(str, texts)
        if _is_other(answer, alternate):
            found.setdefault((question, answer), []).append(alternate.strip())
    for index, row in enumerate(rows):
        if (row["question"], row["answer"]) not in found:
            raise ValueError(
                f'alternates: {file} has no other answer to row {index}, "{row["question"]}", but to {len(found)} '
                "others: was it written of another split? Make it with gru-fast write-alternates"
            )
    return [found[row["question"], row["answer"]] for row in rows]


def _is_other(answer: str, alternate: str) -> bool:
    return bool(alternate.strip()) and alternate.strip() != answer.strip()
