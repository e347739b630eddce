"""What a model can read: found by structure, and held against what the model does; tokens to pad with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from tofu_folders import save_model, tokenizer
from torch import nn

from gru_fast.data.limits import Limits
from gru_fast.models.limits import check_vocabulary, limits_of, padding_id, positions_of
from gru_fast.models.load import ModelOptions

SIZE = 24  # what the configurations say, as most models have it
LEARNED = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SIZE},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SIZE},
    "gpt_neo": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "opt": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16},
    "biogpt": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": SIZE},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SIZE, "rotary_dim": 4},
    "ctrl": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SIZE, "dff": 16},
    "xlm": {"emb_dim": 16, "n_layers": 1, "n_heads": 2},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "is_decoder": True},
}  # fmt: skip
UNLIMITED = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


def build(kind: str, **settings: Any) -> Any:
    common = {"vocab_size": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    known = {"max_position_embeddings": SIZE} if kind not in {"mpt", "bloom"} else {}
    return tiny.family(kind, **{**common, **known, **settings})


def reads(model: Any, count: int) -> bool:
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(3, 3 + count)[None] % 29 + 3, use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", LEARNED)
def test_positions_are_as_many_as_the_model_reads(kind: str) -> None:
    model = build(kind, **LEARNED[kind])
    assert limits_of(model) == Limits(tokens=32, positions=SIZE)
    assert reads(model, SIZE)
    assert not reads(model, SIZE + 1)
    with torch.device("meta"):
        assert limits_of(build(kind, **LEARNED[kind])).positions == SIZE


def test_positions_behind_that_of_the_padding() -> None:
    # RoBERTa's begin after the padding token's id, 1: of 24 it uses 22.
    model = build("roberta", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    assert limits_of(model).positions == SIZE - 2
    assert reads(model, SIZE - 2)
    assert not reads(model, SIZE - 1)


@pytest.mark.parametrize("kind", UNLIMITED)
def test_computed_positions_have_no_limit(kind: str) -> None:
    model = build(kind, **UNLIMITED[kind])
    assert limits_of(model) == Limits(tokens=32, positions=None)
    assert reads(model, 3 * SIZE)


def test_positions_of_an_image_are_none_of_a_text() -> None:
    model = build("llama", **UNLIMITED["llama"])
    model.vision_tower = nn.ModuleDict({"position_embedding": nn.Embedding(4, 16)})
    assert limits_of(model).positions is None


def test_a_lora_has_the_limits_of_its_base() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    assert limits_of(get_peft_model(build("gpt2", **LEARNED["gpt2"]), config)) == Limits(32, SIZE)


def test_what_is_no_language_model_has_no_known_limits() -> None:
    assert limits_of(nn.Linear(2, 2)) == Limits(None, None)


# ---- without the weights ---------------------------------------------------------------------------------------------


def test_positions_of_a_model_that_is_not_loaded(tmp_path: Path) -> None:
    build("gpt2", **LEARNED["gpt2"]).config.save_pretrained(tmp_path / "gpt2")
    assert positions_of(ModelOptions(str(tmp_path / "gpt2"))) == SIZE
    assert positions_of(ModelOptions(str(save_model(tmp_path / "llama")))) is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path / "gpt2"}"}}')
    assert positions_of(ModelOptions(str(tmp_path / "adapter"))) == SIZE


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "nothing of that name"}'])
def test_a_model_that_cannot_be_read_says_so_when_it_is_loaded(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert positions_of(ModelOptions(str(tmp_path))) is None
    assert positions_of(ModelOptions(str(tmp_path / "nowhere"))) is None


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pad", "eos", "of_model", "expected"),
    [
        (5, 2, {}, 5),
        (None, 2, {}, 2),
        (tiny.VOCAB_SIZE, 2, {}, 2),  # added to the tokenizer alone
        (tiny.VOCAB_SIZE, None, {"pad_token_id": None, "eos_token_id": 7}, 7),
        (tiny.VOCAB_SIZE + 3, tiny.VOCAB_SIZE, {"pad_token_id": None, "eos_token_id": None}, 0),
        (-1, 2, {}, 2),
    ],
)
def test_padding_has_an_embedding(pad: int | None, eos: int | None, of_model: dict[str, Any], expected: int) -> None:
    words = SimpleNamespace(pad_token_id=pad, eos_token_id=eos)
    assert padding_id(tiny.llama(**of_model), words) == expected
    assert words.pad_token_id == (None if pad is None else expected)


def test_padding_without_a_tokenizer() -> None:
    assert padding_id(tiny.llama()) == 0
    assert padding_id(tiny.llama(pad_token_id=4)) == 4
    assert padding_id(nn.Linear(2, 2)) == 0


def test_a_tokenizer_may_have_tokens_that_never_occur() -> None:
    words = tokenizer()
    words.add_tokens(["<image_soft_token>"])
    check_vocabulary(tiny.llama(vocab_size=len(words) - 1), words)


def test_an_end_token_without_embedding_is_of_another_model() -> None:
    words = tokenizer()
    words.add_special_tokens({"eos_token": "<end>"})
    size = len(words) - 1
    message = rf"ends texts with the token {size} of {size + 1}, the model has {size} embeddings: they are"
    with pytest.raises(ValueError, match=message):
        check_vocabulary(tiny.llama(vocab_size=size), words)
