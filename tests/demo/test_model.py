"""The demo's tokenizer and untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gru_fast.data.templates import encode
from gru_fast.demo import model
from gru_fast.demo.stages import TEMPLATE
from gru_fast.models.load import ModelOptions, load_model, load_tokenizer

PAIRS = [("Where was Amara Dunmore born?", "Born in Velmora."), ("What animal is it?", "The pet is a goat.")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return model.make_tokenizer(PAIRS, TEMPLATE)


@pytest.mark.parametrize("text", ["Born in Velmora.", "Never seen: naïve Zürich 東京\n\t\U0001f600", ""])
def test_every_text_can_be_encoded_and_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_special_tokens_are_different(tokenizer: Any) -> None:
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert special == {0, 1, 2}
    assert len(tokenizer) <= model.VOCAB_SIZE


def test_words_of_the_text_are_few_tokens(tokenizer: Any) -> None:
    assert len(tokenizer(" Velmora")["input_ids"]) < len(tokenizer(" Aromlev")["input_ids"])


def test_only_the_answer_is_scored(tokenizer: Any) -> None:
    row = encode(tokenizer, TEMPLATE, *PAIRS[0], 128)
    scored = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(scored) == "Born in Velmora.</s>"


def test_size_and_seed(tokenizer: Any) -> None:
    first, same, other = (model.make_model(tokenizer, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    hidden = 128
    block = 4 * hidden**2 + 3 * 4 * hidden**2 + 2 * hidden  # attention, gate up down, two norms
    assert sum(p.numel() for p in first.parameters()) == len(tokenizer) * hidden + 2 * block + hidden


def test_the_folder_is_loaded_as_any_other(tmp_path: Path) -> None:
    model.write_model(tmp_path / "base", PAIRS, TEMPLATE, seed=1)
    options = ModelOptions(model=str(tmp_path / "base"))
    loaded, tokenizer = load_model(options), load_tokenizer(options)
    assert loaded.config.vocab_size == len(tokenizer)
    assert tokenizer(" goat")["input_ids"] == model.make_tokenizer(PAIRS, TEMPLATE)(" goat")["input_ids"]
