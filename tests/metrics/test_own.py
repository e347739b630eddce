"""Measures of own documents, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gru_fast.metrics.own import Record, by_document, measures, read_records, summarize


def record(index: int, document: str = "a", loss: float = 0.0, correct: str = "1111", written: str = "") -> Record:
    reference = "the old letter" if written else ""
    return Record(index, document, len(correct), loss, correct, "Ann has", reference, written)


def test_measures_of_a_piece() -> None:
    found = measures(record(0, loss=math.log(4), correct="01110", written="the letter"))
    assert found == {
        "probability": pytest.approx(0.25),
        "exact_memorization": 0.75,  # the last label is left out, as everywhere
        "extraction_strength": 0.75,
        "rougeL": pytest.approx(2 / 3),
    }
    assert "rougeL" not in measures(record(0))


def test_documents_count_alike_whatever_their_length() -> None:
    rows = [
        record(0, "a", math.log(2), written="the old letter"),
        record(1, "a", math.log(4), written="nothing"),
        record(2, "b", 0.0),
    ]
    found = by_document(rows)
    assert list(found) == ["a", "b"]
    assert found["a"]["probability"] == pytest.approx(3 / 8)
    assert found["a"]["rougeL"] == 0.5
    assert summarize({"forget": rows})["forget"]["probability"] == pytest.approx((3 / 8 + 1) / 2)
    assert summarize({"forget": rows})["forget"]["rougeL"] == 0.5  # b has nothing to go on with


def test_records_are_read_in_order_and_broken_ones_are_named(tmp_path: Path) -> None:
    rows = [record(1, "b"), record(0, "a")]
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    assert read_records(tmp_path) == {"forget": rows[::-1]}
    with file.open("a") as handle:
        handle.write('{"index": 2}\n')
    with pytest.raises(ValueError, match=r"forget\.jsonl, line 3: expected a record; score it anew"):
        read_records(tmp_path)
