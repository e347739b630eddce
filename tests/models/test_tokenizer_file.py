"""Tokenizers that do not do what their file says are told of; by tokenizers made for it, whose tokens are known."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tofu_folders import save_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gru_fast.models.load import ModelOptions, load_tokenizer
from gru_fast.models.tokenizer_file import file_of

TEXT = "AB 12345"
BY_FILE = ["ab", "Ġ", "123", "45"]  # small letters, three digits at most


def write(folder: Path, tokenizer_class: str, model_type: str | None = None) -> Path:
    """A tokenizer of bytes and four merges."""
    merges = [("a", "b"), ("1", "2"), ("12", "3"), ("4", "5"), ("123", "45")]
    tokens = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.normalizer = normalizers.Lowercase()
    cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\p{L}+|\s"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    folder.mkdir()
    made.enable_truncation(2)  # no matter of how a text is cut up
    made.enable_padding(length=2)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def tokens(folder: Path, model: Path) -> list[str]:
    found = load_tokenizer(ModelOptions(str(model), tokenizer=str(folder)))
    return found.convert_ids_to_tokens(
        found(TEXT, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type"),
    [("GPT2Tokenizer", None), ("GPT2TokenizerFast", "llama"), ("PreTrainedTokenizerFast", "qwen2")],
)
def test_a_class_with_rules_of_its_own(
    tmp_path: Path, model: Path, tokenizer_class: str, model_type: str | None
) -> None:
    folder = write(tmp_path / "tokenizer", tokenizer_class, model_type)
    said = r"(?s)does not cut text up as .*tokenizer\.json says: 'In 1984' is \['I', 'n'.*by the file \['i', 'n'"
    with pytest.warns(UserWarning, match=said) as found:
        assert tokens(folder, model) != BY_FILE
    assert len(found) == 1
    # What it says to do helps.
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path / "by file")
    with warnings.catch_warnings(action="error"):
        assert tokens(tmp_path / "by file", model) == BY_FILE


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type"), [("PreTrainedTokenizerFast", None), ("GPT2Tokenizer", "olmo2")]
)
def test_one_that_keeps_to_its_file(tmp_path: Path, model: Path, tokenizer_class: str, model_type: str | None) -> None:
    with warnings.catch_warnings(action="error"):
        assert tokens(write(tmp_path / "tokenizer", tokenizer_class, model_type), model) == BY_FILE


def test_the_file_of_a_name_on_the_hub_is_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert file_of("someone/some-model", None) is None
    repository = tmp_path / "models--someone--some-model"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc" / "tokenizer.json").write_text("{}")
    assert file_of("someone/some-model", None) == repository / "snapshots" / "abc" / "tokenizer.json"
    assert file_of("someone/some-model", None, "other") is None
