"""Losses: those of each sequence alone, whatever the batch, and the model left as it was."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from typing import Any

import pytest
import sharp
import torch
from sharp import END, Words, sequences
from transformers import LlamaForCausalLM

from gru_fast.data.sequences import Encoded
from gru_fast.evaluation.generation import generate
from gru_fast.evaluation.scoring import label_log_probs, losses


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return sharp.model()


def by_hand(model: LlamaForCausalLM, row: Encoded) -> list[float]:
    """log p of each label, one sequence and one token at a time, in float64."""
    found = []
    for at in range(1, len(row["input_ids"])):
        if row["labels"][at] != -100:
            logits = model(input_ids=torch.tensor([row["input_ids"][:at]])).logits[0, -1].double()
            found.append(float(logits.log_softmax(-1)[row["labels"][at]]))
    return found


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


@torch.no_grad()
def test_what_a_model_is_sure_of_is_what_it_would_write() -> None:
    """A model whose probabilities are drawn apart, on its own words, on these with another in between, on others."""
    model = sharp.model()
    model.lm_head.weight.mul_(4.0)
    prompts = [[3, 4, 5], [6, 7], [8, 9, 10]]
    written = [list(map(int, text.split())) for text in generate(model, Words(), prompts, 8, batch_size=3)]
    longest = max(range(3), key=lambda i: len(written[i]))
    prompt, own = prompts[longest], written[longest]
    assert len(own) == 8
    changed = [*own[:3], next(token for token in range(2, 9) if token != own[3]), *own[4:]]
    rows: list[Encoded] = [
        {"input_ids": [*prompt, *words], "labels": [-100] * len(prompt) + words} for words in (own, changed, own[:2])
    ]
    found = losses(model, rows, batch_size=2, pad_token_id=END)
    certain = [log_p > math.log(0.51) for log_p in by_hand(model, rows[0])]
    assert sum(certain) > 3
    expected = [*certain, False].index(False)
    assert [row.sure for row in found] == [expected, min(expected, 3), min(expected, 2)]


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
