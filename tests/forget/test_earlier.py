"""Requests before: whose documents can no longer be read, and those that are to be kept forgotten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tofu_folders
from tiny import rows as random_rows

from gru_fast.data.own import load
from gru_fast.data.sequences import content_hash, num_labels
from gru_fast.data.templates import TEMPLATES
from gru_fast.forget import earlier, manifest
from gru_fast.forget.exam import Texts
from gru_fast.forget.request import Documents, Request
from gru_fast.unlearn.references import ReferenceLogProbs

SALT = "5a17"


@pytest.mark.parametrize(
    ("options", "keep_text", "quoted"), [({}, True, True), ({}, False, False), ({"text": False}, True, False)]
)
def test_without_text_no_message_quotes_the_documents(
    tmp_path: Path, options: dict[str, Any], keep_text: bool, quoted: bool
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"secret name": "of a person"}\n')
    request = {"run": "first", "options": {"forget": [str(file)], "max_length": 64, **options}}
    (found,) = earlier.measured(None, None, [request], keep_text=keep_text)  # type: ignore[arg-type]
    assert found["now"].startswith("not measured: its documents are not at hand")
    assert ("secret name" in found["now"]) == quoted


# ---- kept forgotten --------------------------------------------------------------------------------------------------


def request(folder: Path, name: str, text: str, probability: float) -> dict[str, Any]:
    """A request to forget one text, which the model then gave this probability a token."""
    file = folder / f"{name}.txt"
    file.write_text(text)
    documents = load([str(file)])
    return {
        "run": name,
        "options": {"forget": [str(file)], "max_length": 8},
        "documents": {"salt": SALT, "forget": manifest.entries(SALT, documents)},
        "before": {documents[0].id: probability},
    }


def kept(requests: list[dict[str, Any]], retain: Any = ()) -> Any:
    return earlier.rows(requests, retain, tofu_folders.tokenizer(), TEMPLATES["plain"])


def test_a_row_is_held_against_the_model_before_its_own_request(tmp_path: Path) -> None:
    words = "Who wrote the book that was written in the town by the sea, and who read it?"
    requests = [request(tmp_path, "first", words, 0.5), request(tmp_path, "second", "The town by the sea.", 0.25)]
    found, lacking = kept(requests)
    assert lacking == []
    assert len(found) > len({piece.document for piece in found}) == 2
    for piece in found:
        log_prob = math.log(0.5 if piece.document.startswith("first") else 0.25)
        assert piece.row["reference_log_probs"] == pytest.approx(num_labels(piece.row) * log_prob)


def test_a_document_that_has_another_name_by_now_is_the_same(tmp_path: Path) -> None:
    first = request(tmp_path, "first", "The town by the sea.", 0.5)
    (tmp_path / "first.txt").rename(tmp_path / "renamed.txt")
    first["options"]["forget"] = [str(tmp_path / "*.txt")]
    found, lacking = kept([first])
    assert lacking == []
    assert all(piece.document.endswith("renamed.txt") for piece in found)
    assert found[0].row["reference_log_probs"] == pytest.approx(num_labels(found[0].row) * math.log(0.5))


def test_what_is_not_at_hand_is_said(tmp_path: Path) -> None:
    requests = [
        request(tmp_path, name, f"The {name} town by the sea.", 0.5) for name in ("gone", "other", "old", "here")
    ]
    (tmp_path / "gone.txt").unlink()
    (tmp_path / "other.txt").write_text("Another text.")
    del requests[2]["before"]
    found, lacking = kept(requests)
    assert {piece.document for piece in found} == {"here.txt"}
    assert [each.partition(" (")[0] for each in lacking] == [
        "gone: its documents are not at hand",
        "other: its documents are others now",
        "old: its manifest does not say how it was known before",
    ]
    with pytest.raises(ValueError, match=r"also_keep_forgotten: nothing of the earlier requests is at hand: gone: its"):
        kept(requests[:3])


def test_nothing_is_kept_and_kept_forgotten(tmp_path: Path) -> None:
    requests = [request(tmp_path, "first", "The town by the sea.", 0.5)]
    with pytest.raises(ValueError, match="retain: 1 of 1 documents of retain are in an earlier request too"):
        kept(requests, load([str(tmp_path / "first.txt")]))


def test_rows_of_both_are_trained_on_each_with_its_own_reference(tmp_path: Path) -> None:
    again, _ = kept([request(tmp_path, "first", "The town by the sea.", 0.5)])
    new = random_rows(2, seed=1)
    pieces = [type(again[0])(str(i), 0, row, 0, 0, 0, 1) for i, row in enumerate(new)]
    made = Request(Documents([], [], [], []), pieces, pieces, Texts(pieces, {}, [], "holdout"), again=again)
    dataset = made.dataset(rows_per_step=3, seed=0)
    assert len(dataset) == 3
    store = ReferenceLogProbs({content_hash(each.row): -7.0 for each in pieces}, ["forget"], "model")
    assert store.missing(dataset) == 0  # the others are not scored by the model as it is now
    values = [dataset.attach(store)[i]["forget"]["reference_log_probs"] for i in range(3)]
    assert values == [-7.0, -7.0, pytest.approx(num_labels(again[0].row) * math.log(0.5))]
