"""Own documents as a benchmark: which are trained on, and what is wrong with what was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_files
import pytest

from gru_fast.benchmarks import own
from gru_fast.data.templates import TEMPLATES

PLAIN = TEMPLATES["plain"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_files.save_data(tmp_path_factory.mktemp("own") / "data")


def rows(options: Any, **settings: Any) -> Any:
    return own.unlearning_data(options, own_files.tokenizer(), PLAIN, **settings)


def text(row: Any) -> str:
    return str(own_files.tokenizer().decode(row["input_ids"], skip_special_tokens=True))


def plain(content: str) -> str:
    return text({"input_ids": own_files.tokenizer()(content)["input_ids"]})


def test_files_named_and_a_folder_with_parts_are_the_same(data: Path) -> None:
    named = own.OwnOptions(forget=[f"{data}/forget"], retain=[f"{data}/retain.jsonl"])
    found, again = rows(named), rows(own.OwnOptions(data=str(data)))
    assert list(found.forget) == list(again.forget)
    assert list(found.retain) == list(again.retain)
    assert [text(row) for row in found.forget] == [plain(own_files.letter(number)) for number in range(3)]


def test_a_tenth_of_what_is_kept_is_held_out(data: Path) -> None:
    everything = {plain(own_files.letter(number)) for number in range(10, 20)}
    options = own.OwnOptions(data=str(data))
    kept = {text(row) for row in rows(options).retain}
    trained, held = options.retained(options.documents("forget"))
    assert (len(trained), len(held)) == (9, 1)
    assert kept == everything - {plain(held[0].texts[0])}
    assert len(rows(own.OwnOptions(data=str(data), hold_out=0.0)).retain) == 10


def test_documents_are_cut(data: Path) -> None:
    found = rows(own.OwnOptions(data=str(data), max_length=12, overlap=2), parts=["forget"])
    assert found.parts == ("forget",)
    assert len(found) > 3
    assert max(len(row["input_ids"]) for row in found.forget) == 12


def test_other_splits_of_a_folder(data: Path) -> None:
    columns = {"question": "frage", "answer": "antwort"}
    found = rows(own.OwnOptions(data=str(data), split="pairs", columns=columns))
    assert [text(row) for row in found.forget][1] == plain("Question: Who has a map ?\nAnswer: Bob")


def test_names(data: Path) -> None:
    titles = {
        own.title(own.OwnOptions(data=str(data))): "own-forget",
        own.title(own.OwnOptions(forget=["leak/rows.jsonl", "x"])): "own-rows",
        own.title(own.OwnOptions(forget=["leak/"])): "own-leak",
        own.title(own.OwnOptions(forget=["leak/*.txt"])): "own-documents",
        own.title(own.OwnOptions(forget=["org/name:config:split"])): "own-name",
    }
    assert all(found == expected for found, expected in titles.items()), titles
    assert own.retain_of("forget") == "retain"
    assert own.default_lengths(own.OwnOptions(forget=["x"])) == {"max_length": 512}
    assert own.default_lengths(own.OwnOptions(forget=["x"], max_length=8)) == {}


def test_what_cannot_be(data: Path) -> None:
    with pytest.raises(ValueError, match=r"forget: no documents; give --forget FILES, or --data FOLDER"):
        own.OwnOptions()
    expected = (
        r"forget: named beside --data.*retain: named beside --data.*hold_out: expected a share.*"
        r"max_length: expected at least 2, got 1; overlap: expected at least 0, got -1"
    )
    with pytest.raises(ValueError, match=expected):
        own.OwnOptions(forget=["x"], retain=["y"], data="z", hold_out=1.0, max_length=1, overlap=-1)
    with pytest.raises(FileNotFoundError, match="data: expected a folder with forget, retain and holdout, got"):
        rows(own.OwnOptions(data=str(data / "pairs.csv")))
    with pytest.raises(
        FileNotFoundError, match=r'has forget, holdout, pairs, retain, but no "pair", did you mean "pairs"'
    ):
        rows(own.OwnOptions(data=str(data), split="pair"))
    only_forget = own.OwnOptions(forget=[f"{data}/forget"])
    with pytest.raises(ValueError, match=r"retain: no documents, .*gru-fast write-retain .* or take gru-fast tru"):
        rows(only_forget)
    assert rows(only_forget, parts=["forget"]).retain is None
    with pytest.raises(ValueError, match='parts: expected some of forget, retain, got "idk"'):
        rows(only_forget, parts=["forget", "idk"])
    with pytest.raises(ValueError, match="retain: 3 of 3 documents of retain are in forget too"):
        rows(own.OwnOptions(forget=[f"{data}/forget"], retain=[f"{data}/forget"]))
