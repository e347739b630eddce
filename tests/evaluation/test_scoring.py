"""Scoring: losses and generations do not depend on batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from gru_fast.data.sequences import Encoded
from gru_fast.evaluation.scoring import generate, label_log_probs, losses

END = 1


class Words:
    """Just enough of a tokenizer: token 7 reads "7"."""

    eos_token_id: int | None = END
    pad_token_id: int | None = END  # as in the original code: padding is the end token

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,  # far from uniform, so that a wrong mask or position shows
        bos_token_id=0,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def sequences() -> list[Encoded]:
    """Lengths 2 to 9; of each the first two tokens are prompt, where there are so many."""
    draw = torch.Generator().manual_seed(0)
    rows: list[Encoded] = []
    for length in (5, 2, 9, 3, 7, 9):
        ids = torch.randint(2, 23, (length,), generator=draw).tolist()
        ids[-1] = END
        rows.append({"input_ids": ids, "labels": [-100] * min(2, length - 1) + ids[min(2, length - 1) :]})
    return rows


def by_hand(model: LlamaForCausalLM, row: Encoded) -> list[float]:
    """log p of each label, one sequence and one token at a time, in float64."""
    found = []
    for at in range(1, len(row["input_ids"])):
        if row["labels"][at] != -100:
            logits = model(input_ids=torch.tensor([row["input_ids"][:at]])).logits[0, -1].double()
            found.append(float(logits.log_softmax(-1)[row["labels"][at]]))
    return found


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@torch.no_grad()
def test_log_probs_are_those_of_each_sequence_alone(model: LlamaForCausalLM, batch_size: int) -> None:
    rows = sequences()
    found = label_log_probs(model, rows, batch_size=batch_size, pad_token_id=END)
    means = losses(model, rows, batch_size=batch_size, pad_token_id=END)
    for row, log_probs, mean in zip(rows, found, means, strict=True):
        expected = by_hand(model, row)
        assert (log_probs.dtype, log_probs.device.type) == (torch.float32, "cpu")
        assert log_probs.tolist() == pytest.approx(expected, abs=1e-5)
        assert mean.num_tokens == len(expected)
        assert mean.loss == pytest.approx(-sum(expected) / len(expected), abs=1e-5)


def test_the_padding_token_is_never_seen(model: LlamaForCausalLM) -> None:
    one = losses(model, sequences(), batch_size=6, pad_token_id=END)
    other = losses(model, sequences(), batch_size=6, pad_token_id=22)
    assert [row.loss for row in one] == [row.loss for row in other]


def test_the_models_modes_come_back_and_no_graph_is_kept(model: LlamaForCausalLM) -> None:
    model.train()
    model.model.layers[0].eval()
    found = label_log_probs(model, sequences(), batch_size=3, pad_token_id=END)
    assert not any(row.requires_grad for row in found)
    assert model.training
    assert not model.model.layers[0].training
    model.eval()


def test_the_model_runs_inside_autocast(model: LlamaForCausalLM) -> None:
    def bfloat16() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)

    plain = losses(model, sequences(), batch_size=3, pad_token_id=END)
    lower = losses(model, sequences(), batch_size=3, pad_token_id=END, autocast=bfloat16)
    assert [row.loss for row in lower] != [row.loss for row in plain]
    assert [row.loss for row in lower] == pytest.approx([row.loss for row in plain], rel=0.1)


def test_nothing_to_score_is_refused(model: LlamaForCausalLM) -> None:
    bare: Encoded = {"input_ids": [4, 5], "labels": [4, -100]}  # label 0 has no prediction
    with pytest.raises(ValueError, match=r"sequences\[1\]: none of its 2 tokens is scored"):
        losses(model, [sequences()[0], bare], batch_size=2, pad_token_id=END)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        losses(model, sequences(), batch_size=0, pad_token_id=END)
    assert losses(model, [], batch_size=2, pad_token_id=END) == []


def test_a_diverged_model_is_named(model: LlamaForCausalLM) -> None:
    weight = model.lm_head.weight
    held = weight.detach().clone()
    with torch.no_grad():
        weight[3, 0] = math.nan
    try:
        with pytest.raises(RuntimeError, match=r"NaN or Inf for 6 of 6 sequences; it has diverged"):
            losses(model, sequences(), batch_size=2, pad_token_id=END)
    finally:
        with torch.no_grad():
            weight.copy_(held)


@torch.no_grad()
def test_a_model_with_an_adapter_is_scored_with_it(model: LlamaForCausalLM) -> None:
    peft = pytest.importorskip("peft")
    plain = losses(model, sequences(), batch_size=3, pad_token_id=END)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    found = losses(adapted, sequences(), batch_size=3, pad_token_id=END)
    assert [row.loss for row in found] != [row.loss for row in plain]
    written = generate(adapted, Words(), [[3, 4], [5]], 6, batch_size=2)
    merged = adapted.merge_and_unload()
    again = losses(merged, sequences(), batch_size=3, pad_token_id=END)
    assert [row.loss for row in again] == pytest.approx([row.loss for row in found], abs=1e-4)
    assert generate(merged, Words(), [[3, 4], [5]], 6, batch_size=2) == written


# ---- generations -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy_by_hand(model: LlamaForCausalLM, prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    for _ in range(most):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_generation_is_greedy_row_by_row_each_with_its_limit(model: LlamaForCausalLM, batch_size: int) -> None:
    prompts = [row["input_ids"][:-1] for row in sequences()]
    limits = [4, 12, 0, 7, 1, 3]
    found = generate(model, Words(), prompts, limits, batch_size=batch_size)
    for prompt, limit, text in zip(prompts, limits, found, strict=True):
        assert text == " ".join(map(str, greedy_by_hand(model, prompt, limit)))


def test_one_limit_for_all_and_no_prompts(model: LlamaForCausalLM) -> None:
    prompts = [[3, 4], [5]]
    assert generate(model, Words(), prompts, 5, batch_size=2) == generate(model, Words(), prompts, [5, 5], batch_size=2)
    assert generate(model, Words(), prompts, 0, batch_size=2) == ["", ""]
    assert generate(model, Words(), [], 5, batch_size=2) == []


def test_the_end_tokens_of_the_model_end_a_text_too(model: LlamaForCausalLM) -> None:
    prompt = [3, 4, 5]
    free = greedy_by_hand(model, prompt, 6)
    assert len(free) > 2
    held, stop = model.generation_config, free[2]
    model.generation_config = GenerationConfig(eos_token_id=[END, stop])
    try:
        expected = free[: free.index(stop)]
        assert generate(model, Words(), [prompt], 6, batch_size=1) == [" ".join(map(str, expected))]
    finally:
        model.generation_config = held


def test_penalties_and_sampling_of_the_models_config_do_not_count(model: LlamaForCausalLM) -> None:
    prompts = [[3, 4], [5, 6, 7, 8]]
    expected = generate(model, Words(), prompts, 8, batch_size=2)
    held = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, top_p=0.9, repetition_penalty=9.0, no_repeat_ngram_size=1, max_length=3
    )
    try:
        assert generate(model, Words(), prompts, 8, batch_size=2) == expected
    finally:
        model.generation_config = held


def test_a_tokenizer_without_padding_or_end(model: LlamaForCausalLM) -> None:
    words = Words()
    words.pad_token_id = None
    assert generate(model, words, [[3], [4, 5]], 3, batch_size=2) == generate(
        model, Words(), [[3], [4, 5]], 3, batch_size=2
    )


def test_wrong_prompts_are_named(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected at least one token"):
        generate(model, Words(), [[3], []], 3, batch_size=2)
    with pytest.raises(ValueError, match="max_new_tokens: expected one number or 2, got 1"):
        generate(model, Words(), [[3], [4]], [3], batch_size=2)
