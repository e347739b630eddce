"""WMDP's corpora: from a folder and from the hub, cut to their first tokens, paired, with one clear line for errors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import wmdp_files
from words import BOS

from gru_fast.benchmarks import wmdp
from gru_fast.benchmarks.wmdp.rows import WmdpOptions, encode, load, topics_of, unlearning_data
from gru_fast.data.pairs import PairCollator, UnlearnDataset
from gru_fast.data.sequences import LazyRows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wmdp_files.save_data(tmp_path_factory.mktemp("wmdp"))


def texts(rows: Any) -> list[str]:
    """The texts of tokenized rows; the tokenizer of the tests keeps every word."""
    tokenizer = wmdp_files.tokenizer()
    return [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def same_words(text: str) -> str:
    tokenizer = wmdp_files.tokenizer()
    return str(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True))


def test_load_from_a_folder(folder: Path) -> None:
    assert load("cyber-forget-corpus", folder) == wmdp_files.corpus("cyber", 0, 10)  # without the empty one
    assert load("bio-forget-corpus", folder) == wmdp_files.corpus("bio", 0, 6)  # bio_remove_dataset
    assert load("bio-retain-corpus", folder) == wmdp_files.corpus("bio", 20, 4)  # texts by themselves
    assert load("wikitext-2-raw-v1", folder) == wmdp_files.corpus("wiki", 0, 12)  # no headings


def test_wikitext_of_50_characters_is_left_out(tmp_path: Path) -> None:
    rows = "\n".join(f'{{"text": "{"x" * length}"}}' for length in (49, 50, 51))
    (tmp_path / "wikitext.jsonl").write_text(rows)
    assert load("wikitext-2-raw-v1", tmp_path) == ["x" * 51]


def test_the_first_tokens_are_kept_and_all_are_labels() -> None:
    tokenizer = wmdp_files.tokenizer()
    text = wmdp_files.document("cyber", 2)
    whole = tokenizer(text)["input_ids"]
    row = encode(tokenizer, text, 9)
    assert row["input_ids"] == whole[:9]
    assert row["input_ids"][0] == BOS
    assert row["labels"] == row["input_ids"]
    assert row["labels"] is not row["input_ids"]
    assert encode(tokenizer, text, 1000)["input_ids"] == whole


def test_padding_is_no_label(folder: Path) -> None:
    dataset = unlearning_data(wmdp_files.tokenizer(), "cyber", folder)
    batch = PairCollator(wmdp_files.tokenizer().pad_token_id)([dataset[i] for i in range(4)])
    for part in ("forget", "retain"):
        lengths = batch[part]["attention_mask"].sum(1)
        assert len(set(lengths.tolist())) > 1
        padding = batch[part]["attention_mask"] == 0
        assert torch.equal(batch[part]["labels"] == -100, padding)
        assert (batch[part]["labels"][~padding] == batch[part]["input_ids"][~padding]).all()


@pytest.mark.parametrize(("split", "count"), [("cyber", 10), ("bio", 6), ("bio-cyber", 16)])
def test_topics_are_put_together(folder: Path, split: str, count: int) -> None:
    dataset = unlearning_data(wmdp_files.tokenizer(), split, folder)
    assert len(dataset) == count
    expected = [text for topic in topics_of(split) for text in load(f"{topic}-forget-corpus", folder)]
    assert texts(dataset.forget) == [same_words(text) for text in expected]
    assert dataset.parts == ("forget", "retain")
    assert texts(dataset.retain) == [same_words(text) for text in load("wikitext-2-raw-v1", folder)]


def test_retain_corpora_and_lengths(folder: Path) -> None:
    tokenizer = wmdp_files.tokenizer()
    dataset = unlearning_data(tokenizer, "bio-cyber", folder, retain="corpora", max_length=7)
    assert dataset.retain is not None
    assert len(dataset.retain) == 10
    assert {len(row["input_ids"]) for row in (*dataset.forget, *dataset.retain)} == {7}
    dataset = unlearning_data(tokenizer, "cyber", folder, max_length=7)
    assert dataset.retain is not None
    assert max(len(row["input_ids"]) for row in dataset.retain) > 7  # 2048 of wikitext
    dataset = unlearning_data(tokenizer, "cyber", folder, retain_max_length=5)
    assert dataset.retain is not None
    assert {len(row["input_ids"]) for row in dataset.retain} == {5}
    assert unlearning_data(tokenizer, "cyber", folder, parts=["forget"]).retain is None


def test_documents_are_drawn_by_the_seed(folder: Path) -> None:
    def drawn(seed: int) -> list[str]:
        return texts(unlearning_data(wmdp_files.tokenizer(), "bio-cyber", folder, documents=6, seed=seed).forget)

    everything = texts(unlearning_data(wmdp_files.tokenizer(), "bio-cyber", folder).forget)
    assert len(set(drawn(0))) == 6
    assert set(drawn(0)) < set(everything)
    assert drawn(0) == drawn(0)
    assert set(drawn(0)) != set(drawn(1))
    assert any(text.startswith("bio") for text in drawn(0))  # of both topics together


def test_documents_are_tokenized_when_they_are_read(folder: Path) -> None:
    tokenizer, asked = wmdp_files.tokenizer(), []

    class Counting:
        pad_token_id = 1

        def __call__(self, text: str, **kwargs: Any) -> Any:
            asked.append(text)
            return tokenizer(text, **kwargs)

    dataset = unlearning_data(Counting(), "cyber", folder)
    assert not asked
    item = dataset[3]
    assert len(asked) == 2
    assert item["forget"]["input_ids"] == dataset.forget[3]["input_ids"]
    copy = pickle.loads(pickle.dumps(unlearning_data(tokenizer, "cyber", folder)))
    assert copy[3]["forget"] == item["forget"]


def test_lazy_rows_are_checked_when_they_are_read() -> None:
    rows = LazyRows(["a", ""], lambda text: {"input_ids": [0, 5] if text else [0], "labels": [0, 5] if text else [0]})
    dataset = UnlearnDataset(rows)
    assert dataset[0]["forget"]["labels"] == [0, 5]
    with pytest.raises(ValueError, match=r"^rows\[1\]: none of its 1 tokens is scored"):
        _ = dataset[1]
    assert len(rows[1:]) == 1
    with pytest.raises(ValueError, match=r"^forget: expected at least one row"):
        UnlearnDataset(rows[2:])


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Has datasets.load_dataset give 7 rows that say what was asked for; nothing of the bio forget corpus."""
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str, split: str) -> Any:
        asked.append((name, config, split))
        if name == wmdp.BIO_FORGET:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' is a gated dataset on the Hub.")
        return datasets.Dataset.from_list([{"text": f"{config} {i} " + "lock " * 20} for i in range(7)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_names_on_the_hub(hub: list[tuple[Any, ...]]) -> None:
    assert len(load("cyber-forget-corpus")) == 7
    dataset = unlearning_data(wmdp_files.tokenizer(), "cyber")
    assert len(dataset) == 7
    unlearning_data(wmdp_files.tokenizer(), "cyber", retain="corpora")
    corpora = "cais/wmdp-corpora"
    assert hub == [
        (corpora, "cyber-forget-corpus", "train"),
        (corpora, "cyber-forget-corpus", "train"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        (corpora, "cyber-forget-corpus", "train"),
        (corpora, "cyber-retain-corpus", "train"),
    ]


def test_the_bio_forget_corpus_says_how_to_get_it(hub: list[tuple[Any, ...]], folder: Path, tmp_path: Path) -> None:
    how = r"given out on request: ask on https://huggingface.co/datasets/cais/wmdp-bio-forget-corpus .*hf auth login"
    with pytest.raises(FileNotFoundError, match=rf"gated dataset on the Hub.*; the bio forget corpus is {how}"):
        load("bio-forget-corpus")
    (tmp_path / "cyber-forget-corpus.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(FileNotFoundError, match=rf'has cyber-forget-corpus, but no "bio-forget-corpus"; .*{how}'):
        load("bio-forget-corpus", tmp_path)
    assert hub == [(wmdp.BIO_FORGET, "default", "train")]
    load("bio-forget-corpus", "somebody/with-all-corpora")
    assert hub[-1] == ("somebody/with-all-corpora", "bio-forget-corpus", "train")
    # A folder without wikitext: that on the hub.
    unlearning_data(wmdp_files.tokenizer(), "cyber", tmp_path)
    assert hub[-1] == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "cybr"}, r'^split: expected one of bio, cyber, bio-cyber, got "cybr", did you mean "cyber"\?'),
        ({"retain": "wiki"}, r'^retain: expected one of wikitext, corpora, got "wiki"'),
        ({"documents": -1}, r"^documents: expected a whole number of at least 0, got -1"),
        ({"max_length": 1, "retain_max_length": 0}, r"^max_length: .* got 1; retain_max_length: .* got 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WmdpOptions(**options)


def test_wrong_data(folder: Path, tmp_path: Path) -> None:
    tokenizer = wmdp_files.tokenizer()
    with pytest.raises(ValueError, match=r'^parts: expected some of forget, retain, got "idk": WMDP is texts'):
        unlearning_data(tokenizer, "cyber", folder, parts=["forget", "idk"])
    with pytest.raises(ValueError, match=r"^documents: expected at most the 10 of cyber, got 11; 0 for all"):
        unlearning_data(tokenizer, "cyber", folder, documents=11)
    with pytest.raises(FileNotFoundError, match=r'no "cyber-forget-corpora", did you mean "cyber-forget-corpus"\?'):
        load("cyber-forget-corpora", folder)
    with pytest.raises(ValueError, match=r'^split: expected one of bio, cyber, bio-cyber, got "chem"'):
        topics_of("chem")
    file = tmp_path / "cyber-forget-corpus.jsonl"
    file.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(ValueError, match=r'cyber-forget-corpus.jsonl, row 1: expected a field "text", got txt'):
        load("cyber-forget-corpus", tmp_path)
    file.write_text('" "\n')
    with pytest.raises(
        ValueError, match=r'expected texts of more than 0 characters in "cyber-forget-corpus", got none'
    ):
        load("cyber-forget-corpus", tmp_path)


def test_for_the_command(folder: Path) -> None:
    options = wmdp.Options(data=str(folder), split="bio", max_length=6, documents=2)
    dataset = wmdp.unlearning(options, wmdp_files.tokenizer(), None, ["forget", "retain"], 3)  # type: ignore[arg-type]
    assert len(dataset) == 2
    assert dataset.seed == 3
    assert {len(row["input_ids"]) for row in dataset.forget} == {6}
    assert wmdp.title(options) == "wmdp-bio"
    assert wmdp.retain_of("bio") == "wikitext"
