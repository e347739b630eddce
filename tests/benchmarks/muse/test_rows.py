"""MUSE's texts: the layouts they come in, pieces of a stream by hand, and the pairs of an unlearning run."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import muse_files
import pytest
from muse_files import articles
from words import BOS, word_tokenizer

from gru_fast.benchmarks import muse
from gru_fast.benchmarks.muse.rows import MuseOptions, chunks, corpus_of, load, load_text, unlearning_data

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return muse_files.save_data(tmp_path_factory.mktemp("muse") / "bbc")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return muse_files.tokenizer()


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subset", "split", "count", "fields"),
    [
        ("raw", "forget", 1, ["text"]),  # a stream
        ("raw", "retain2", 6, ["text"]),  # a list of texts
        ("sust", "forget_1", 3, ["text"]),  # a list of objects
        ("sust", "forget_3", 1, ["text"]),
        ("verbmem", "forget", 4, ["prompt", "gt"]),
        ("knowmem", "forget_qa", 4, ["question", "answer"]),
        ("knowmem", "retain_qa", 4, ["question", "answer"]),  # retain2_qa in the repository
        ("knowmem", "retain_qa_icl", 10, ["question", "answer"]),
        ("privleak", "holdout", 4, ["text"]),
    ],
)
def test_every_subset_of_a_folder(data: Path, subset: str, split: str, count: int, fields: list[str]) -> None:
    rows = load(subset, split, data)
    assert len(rows) == count
    assert all(list(row) == fields for row in rows)


def test_a_text_of_another_encoding_is_named(data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    text = load_text("forget", data)
    (copied / "raw/forget.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_text("forget", copied) == text
    (copied / "raw/forget.txt").write_bytes(f"{text}\nOne more café".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"raw/forget\.txt, line \d+: expected UTF-8, got the byte 0xe9 after 'One more"
    ):
        load_text("forget", copied)


def test_a_text_is_the_stream_or_the_rows_joined_by_blank_lines(data: Path) -> None:
    assert load_text("forget", data) == "\n\n".join(articles(0, 12))
    assert load_text("retain2", data) == "\n\n".join(articles(66, 6))
    assert load_text("sust_1", data) == "\n\n".join(articles(0, 3))


def test_the_stream_goes_before_the_rows(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/forget.json").write_text('["from the list"]')
    assert load_text("forget", tmp_path) == "from the list"
    (tmp_path / "raw/forget.txt").write_text("from the stream")
    assert load_text("forget", tmp_path) == "from the stream"


def test_scal_grows_and_sust_goes_on(data: Path) -> None:
    scal = [load_text(f"scal_{fold}", data) for fold in range(1, 5)]
    assert all(larger.startswith(smaller) and larger != smaller for smaller, larger in itertools.pairwise(scal))
    sust = [load_text(f"sust_{fold}", data) for fold in range(1, 5)]
    assert "\n\n".join(sust) == scal[3] == load_text("forget", data)


def test_names_of_corpora(tmp_path: Path) -> None:
    assert [corpus_of(name) for name in ("muse-bench/MUSE-News", "muse-bench/MUSE-Books")] == ["news", "books"]
    assert [corpus_of(tmp_path / name) for name in ("bbc", "hp", "Mine")] == ["news", "books", "mine"]


def test_the_hub_is_asked_for_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []

    def load_rows(data: str, name: str, fields: Any, *, split: str) -> list[dict[str, str]]:
        asked.append((data, name, split))
        if split == "retain_qa":
            raise ValueError("Unknown split")
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr("gru_fast.benchmarks.muse.rows.load_rows", load_rows)
    assert load_text("scal_2", "muse-bench/MUSE-News") == "one\n\ntwo"
    load("knowmem", "retain_qa", muse.HUB)
    assert asked == [
        ("muse-bench/MUSE-News", "scal", "forget_2"),
        ("muse-bench/MUSE-Books", "knowmem", "retain_qa"),
        ("muse-bench/MUSE-Books", "knowmem", "retain2_qa"),
    ]


def test_a_wrong_row_is_not_taken_for_a_missing_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_rows(data: str, name: str, fields: Any, *, split: str) -> list[dict[str, str]]:
        raise ValueError(f"{split} is broken")

    monkeypatch.setattr("gru_fast.benchmarks.muse.rows.load_rows", load_rows)
    with pytest.raises(ValueError, match="retain_qa is broken"):
        load("knowmem", "retain_qa", muse.HUB)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("raw", "forgot"),
            FileNotFoundError,
            r'raw has forget, holdout, retain1, retain2, but no "forgot", did you m',
        ),
        (("knowmem", "retain_qb"), FileNotFoundError, 'but no "retain_qb", did you mean "retain2_qa"'),
        (("knowmen", "forget_qa"), ValueError, 'subset: expected one of raw.*got "knowmen", did you mean "knowmem"'),
    ],
)
def test_what_is_not_there_is_said(data: Path, arguments: tuple[str, str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load(*arguments, data)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "row").mkdir()
    with pytest.raises(FileNotFoundError, match='has row, but no "raw", did you mean "row"'):
        load_text("forget", tmp_path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileNotFoundError, match='has no files, but no "forget"'):
        load_text("forget", tmp_path)
    (tmp_path / "raw/forget.json").write_text("[]")
    with pytest.raises(ValueError, match=r"forget.json: expected rows, got an empty file"):
        load_text("forget", tmp_path)
    (tmp_path / "raw/forget.json").write_text('["one", {"texts": "two"}]')
    with pytest.raises(ValueError, match=r'forget.json, row 1: expected a field "text", got texts'):
        load_text("forget", tmp_path)
    with pytest.raises(FileNotFoundError, match="data: no folder"):
        load_text("forget", tmp_path / "nowhere")


def test_books_has_no_folds(tmp_path: Path) -> None:
    books = tmp_path / "hp"
    (books / "raw").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='split: "scal_2" is of News; Books has forget alone'):
        load_text("scal_2", books)


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_pieces_by_hand() -> None:
    tokenizer = word_tokenizer(["a b c d e f g"], bos=True)  # a 3, b 4, ... g 9
    assert chunks(tokenizer, "a b c d e f g", 4) == [
        {"input_ids": [BOS, 3, 4, 5], "labels": [BOS, 3, 4, 5]},
        {"input_ids": [BOS, 6, 7, 8], "labels": [BOS, 6, 7, 8]},
        {"input_ids": [BOS, 9, BOS, 3], "labels": [BOS, 9, BOS, 3]},  # filled up from the first, its BOS too
    ]


@pytest.mark.parametrize("text", ["a b c d e f", "a b c"])
def test_a_last_piece_that_is_full_stays(text: str) -> None:
    pieces = chunks(word_tokenizer(["a b c d e f"], bos=True), text, 4)
    assert [len(piece["input_ids"]) for piece in pieces] == [4] * (len(text.split()) // 3)
    assert sum(piece["input_ids"].count(BOS) for piece in pieces) == len(pieces)


def test_a_short_text_is_one_short_piece() -> None:
    tokenizer = word_tokenizer(["a b"], bos=True)
    assert chunks(tokenizer, "a b", 2048) == [{"input_ids": [BOS, 3, 4], "labels": [BOS, 3, 4]}]


def test_a_tokenizer_without_bos_gives_pieces_without() -> None:
    tokenizer = word_tokenizer(["a b c"], adds_eos=True)
    assert [piece["input_ids"] for piece in chunks(tokenizer, "a b c", 2)] == [[3, 4], [5, 3]]


def test_pieces_that_cannot_be_are_refused() -> None:
    tokenizer = word_tokenizer(["a"], bos=True)
    with pytest.raises(ValueError, match="text: expected words to cut into pieces, got none"):
        chunks(tokenizer, "  ", 4)
    with pytest.raises(ValueError, match="max_length: expected more than the 1 tokens before a text, got 1"):
        chunks(tokenizer, "a", 1)


def test_no_token_is_lost_or_doubled(data: Path, tokenizer: Any) -> None:
    text = load_text("forget", data)
    stream = tokenizer(text, add_special_tokens=False)["input_ids"]
    for max_length in (7, 32, 2048):
        pieces = chunks(tokenizer, text, max_length)
        found = [token for piece in pieces for token in piece["input_ids"][1:]]
        assert found[: len(stream)] == stream
        assert len(pieces) == -(-len(stream) // (max_length - 1))


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_of_a_run(data: Path, tokenizer: Any) -> None:
    dataset = unlearning_data(tokenizer, "forget", data, 24, seed=3)
    forget, retain = (chunks(tokenizer, load_text(name, data), 24) for name in ("forget", "retain1"))
    assert len(dataset) == len(forget)
    assert dataset.parts == ("forget", "retain")
    assert [dataset[i]["forget"] for i in range(len(forget))] == forget
    assert all(item["retain"] in retain for item in dataset)  # type: ignore[attr-defined]
    assert all(len(row["input_ids"]) == 24 for row in (*forget, *retain))


def test_retained_pieces_are_drawn_at_random_and_not_by_number(data: Path, tokenizer: Any) -> None:
    dataset = unlearning_data(tokenizer, "forget", data, 16)
    retain = chunks(tokenizer, load_text("retain1", data), 16)
    drawn = [retain.index(dataset[i]["retain"]) for i in range(len(dataset))]
    assert drawn != [i % len(retain) for i in range(len(dataset))]
    dataset.set_epoch(1)
    assert drawn != [retain.index(dataset[i]["retain"]) for i in range(len(dataset))]


def test_only_what_is_needed_is_read(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/forget.txt").write_text(articles(0, 1)[0])
    assert unlearning_data(tokenizer, data=tmp_path, parts=["forget"]).parts == ("forget",)
    with pytest.raises(FileNotFoundError, match='no "retain1"'):
        unlearning_data(tokenizer, data=tmp_path)


def test_muse_has_no_answers_that_decline(data: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match='got "idk": MUSE is texts'):
        unlearning_data(tokenizer, data=data, parts=["forget", "idk"])


# ---- options ---------------------------------------------------------------------------------------------------------


def test_the_published_setting_is_the_default() -> None:
    assert MuseOptions() == MuseOptions("muse-bench/MUSE-Books", "forget", None)
    assert muse.default_lengths(MuseOptions()) == {"max_length": 2048}
    assert muse.default_lengths(MuseOptions(max_length=9)) == {}
    assert muse.title(MuseOptions()) == "muse-books"
    assert muse.title(MuseOptions("muse-bench/MUSE-News", "sust_2")) == "muse-news-sust_2"


def test_options_that_cannot_be_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r'split: expected one of forget, scal_1.*got "scal2", did.*; max_length: exp'):
        MuseOptions(split="scal2", max_length=1)


def test_files_are_in_the_original_layout(data: Path) -> None:
    assert len(set(articles(0, 144))) == 144
    assert sorted(str(path.relative_to(data)) for path in data.rglob("forget*")) == sorted(
        [
            *("raw/forget.txt", "raw/forget.json", "verbmem/forget.json", "privleak/forget.json"),
            *("knowmem/forget_qa.json", "knowmem/forget_qa_icl.json"),
            *(f"scal/forget_{fold}.txt" for fold in range(1, 5)),
            *("sust/forget_1.json", "sust/forget_2.json", "sust/forget_3.txt", "sust/forget_4.txt"),
        ]
    )
    assert all(isinstance(text, str) for text in json.loads((data / "privleak/forget.json").read_text()))
