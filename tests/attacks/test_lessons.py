"""What is taught: never a row that is asked about, near rows by what they share, and the user's own text."""

from __future__ import annotations

import json
from pathlib import Path

import planted
import pytest
import tofu_folders

from gru_fast.attacks.parts import lessons
from gru_fast.data.sequences import Encoded
from gru_fast.data.templates import TEMPLATES

PHI = TEMPLATES["phi"]


def row(*ids: int) -> Encoded:
    return {"input_ids": [*ids], "labels": [*ids]}


def test_rows_that_are_taught_are_drawn_and_some_are_left() -> None:
    assert lessons.taught(100, 20, 0) == lessons.taught(100, 20, 0)
    assert lessons.taught(100, 20, 0) != lessons.taught(100, 20, 1)
    assert len({*lessons.taught(100, 20, 0)}) == 20
    with pytest.raises(ValueError, match=r"relearn_rows: expected fewer than the 4 rows to forget, .* got 4"):
        lessons.taught(4, 4, 0)


def test_near_rows_share_what_is_rare() -> None:
    forget = [row(1, 2, 10, 11)]
    kept = [row(1, 2, 30), row(1, 2, 10, 31), row(1, 2, 10, 11, 32), row(33)]
    # 1 and 2 are in nearly all rows: what is told by them counts little, 10 more, 11 most.
    assert lessons.nearest(forget, kept, 4) == [2, 1, 0, 3]
    assert lessons.nearest(forget, kept, 2) == [2, 1]
    assert lessons.nearest([row(33), *forget], kept, 1) == [3]  # the nearest to any of them


def test_of_each_source(models: planted.Models, tmp_path: Path) -> None:
    target, words = planted.target(models, tmp_path), tofu_folders.tokenizer()
    forget, kept = (planted.rows_of(models.data, name) for name in ("forget05", "retain95"))
    found = {source: lessons.lessons(target, words, PHI, source, 3, 0) for source in lessons.SOURCES}
    assert found["forget"] == [forget[index] for index in lessons.taught(4, 3, 0)]
    for source in ("near", "harmless"):
        assert len(found[source]) == 3
        assert all(one in kept for one in found[source])
    # Near rows are of the cities of the rows to forget.
    cities = {one["input_ids"][-3] for one in forget}
    assert all(one["input_ids"][-3] in cities for one in found["near"])


def test_text_of_the_users_own(models: planted.Models, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"text": "She was born"}, {"question": "Where was author 3 born?", "answer": "She was born in Cairo."}]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    target, words = planted.target(models, tmp_path), tofu_folders.tokenizer()
    found = lessons.lessons(target, words, PHI, "harmless", 5, 0, str(file))
    assert found[0] == row(*words("She was born")["input_ids"])
    assert found[1] == planted.rows_of(models.data, "full")[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"question": "Where?"}\n', 'line 1: expected a field "answer"'),
        ('{"text": 3}\n', 'line 1: field "text": expected a text, got 3'),
        ("", "expected rows, got an empty file"),
        ("[1]", "line 1: expected an object with question, answer, got int"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=problem):
        lessons.read_lessons(file)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.jsonl"):
        lessons.read_lessons(tmp_path / "nowhere.jsonl")
