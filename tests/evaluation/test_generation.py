"""Generations: greedy, row by row, whatever the batch and the model's own generation config."""

from __future__ import annotations

import pytest
import sharp
import torch
from sharp import END, Words, sequences
from transformers import GenerationConfig, LlamaForCausalLM

from gru_fast.evaluation.generation import generate


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return sharp.model()


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
