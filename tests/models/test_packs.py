"""Answers that share a prompt, run as one row, against each run alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from gru_fast.data.sequences import Encoded
from gru_fast.models import head, packs
from gru_fast.models.packs import log_probs_of_labels, packed

FAMILIES: dict[str, Any] = {
    "llama": tiny.llama,
    "learned positions": lambda: tiny.family(
        "gpt2", vocab_size=48, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    ),
    "eager": lambda: tiny.llama(attn_implementation="eager"),
}


def row(prompt: list[int], answer: list[int], unscored: int = 0) -> Encoded:
    """``unscored``: how many tokens from the answer's second on have no label."""
    labels = [answer[0], *[-100] * unscored, *answer[1 + unscored :]]
    return {"input_ids": [*prompt, *answer], "labels": [*[-100] * len(prompt), *labels]}


ROWS = [
    row([5, 6, 7, 8], [9, 10, 11, 2]),
    row([5, 6, 7], [20, 21, 2]),
    row([5, 6, 7, 8], [9, 30, 31, 32, 33, 34, 2], unscored=2),
    row([5, 6, 7, 8], [2]),
    row([40], [41, 42]),
    row([5, 6, 7, 8], [44, 10, 11, 45, 2]),
]


def alone(model: nn.Module, one: Encoded) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one["input_ids"]])).logits[0]
    log_probs = logits[:-1].log_softmax(-1).gather(1, torch.tensor(one["input_ids"])[1:, None])[:, 0]
    return log_probs[torch.tensor(one["labels"])[1:] != -100]


def test_packs_by_hand() -> None:
    """The tree of four rows: 5 6 7 8, then 9 10 11 | 9 30 ... 34 | nothing | 44 10 11 45."""
    found = packed(ROWS)
    assert [(pack.prompt, pack.rows, len(pack)) for pack in found] == [
        (4, [0, 2, 3, 5], 4 + 3 + 5 + 0 + 4),
        (3, [1], 3 + 2),
        (1, [4], 1 + 1),
    ]
    first = found[0]
    assert first.branches == [(0, 7, -1), (7, 12, 4), (12, 16, 3)]
    assert first.paths == [[*range(7)], [*range(5), *range(7, 12)], [0, 1, 2, 3], [0, 1, 2, 3, *range(12, 16)]]
    batch = packs._batch(found[:2], 0, tiny.llama(), torch.no_grad)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 8, 9, 10, 11, 30, 31, 32, 33, 34, 44, 10, 11, 45],
        [5, 6, 7, 20, 21, *[0] * 11],
    ]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 4, 5, 6, 7]
    seen = batch["attention_mask"][:, 0] == 0
    assert seen[0, 8].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 7, 8]
    assert seen[0, 13].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 12, 13]
    assert seen[0, 2].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert seen[1, 4].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen[1, 9].nonzero()[:, 0].tolist() == [9]
    # 9 after the prompt is wanted by two rows and asked once; 30 and 31 are not scored.
    assert list(first.places) == [
        (3, 9), (4, 10), (5, 11), (6, 2), (8, 32), (9, 33), (10, 34), (11, 2), (3, 2),
        (3, 44), (12, 10), (13, 11), (14, 45), (15, 2),
    ]  # fmt: skip
    assert first.labels == [[0, 1, 2, 3], [0, 4, 5, 6, 7], [8], [9, 10, 11, 12, 13]]
    at = packs._places(found[:2])
    assert at.rows.tolist() == [0] * 14 + [1] * 3
    assert at.columns.tolist() == [node for node, _ in first.places] + [2, 3, 4]
    assert at.tokens.tolist() == [token for _, token in first.places] + [20, 21, 2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("small", [0, 2**24], ids=["blocks", "whole"])
def test_every_answer_gets_what_it_gets_alone(
    family: str, batch_size: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "SMALL_LOGITS", small)
    model, steps = FAMILIES[family]().train(), []
    found = log_probs_of_labels(model, ROWS, batch_size=batch_size, pad_token_id=0, advance=steps.append)
    assert list(packs._tried[model].values()) == [True]
    assert sum(steps) == len(ROWS)
    assert model.training
    model.eval()
    for one, values in zip(ROWS, found, strict=True):
        assert not values.requires_grad
        torch.testing.assert_close(values, alone(model, one), atol=1e-5, rtol=1e-5)


def test_a_model_that_does_not_read_the_mask_runs_rows_one_by_one() -> None:
    """Mamba has no attention: answers would follow one another."""
    model = tiny.family("mamba", vocab_size=48, hidden_size=32, num_hidden_layers=2, state_size=4).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.mul_(4.0)
    found = log_probs_of_labels(model, ROWS, batch_size=4, pad_token_id=0)
    assert list(packs._tried[model].values()) == [False]
    for one, values in zip(ROWS, found, strict=True):
        torch.testing.assert_close(values, alone(model, one), atol=1e-4, rtol=1e-4)


def test_answers_of_one_token_say_nothing_of_longer_ones() -> None:
    """Their pack does not branch, so that a model that does not read the mask gets all of it right."""
    sizes = {"vocab_size": 48, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 32}
    model = tiny.family("rwkv", **sizes, num_hidden_layers=2, context_length=64)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.mul_(4.0)
    letters = [row([*range(3, 23)], [letter]) for letter in (5, 6, 7, 8)]
    for rows in (letters, ROWS):
        for one, values in zip(rows, log_probs_of_labels(model, rows, batch_size=4, pad_token_id=0), strict=True):
            torch.testing.assert_close(values, alone(model, one), atol=1e-4, rtol=1e-4)
    assert packs._tried[model] == {20: False, 16: False}


def test_rows_without_a_common_prompt_are_not_tried() -> None:
    model = tiny.llama()
    rows = tiny.rows(5, seed=1)
    found = log_probs_of_labels(model, rows, batch_size=2, pad_token_id=0)
    assert model not in packs._tried
    for one, values in zip(rows, found, strict=True):
        torch.testing.assert_close(values, alone(model.eval(), one), atol=1e-5, rtol=1e-5)


def test_a_longer_pack_is_tried_again() -> None:
    model = tiny.llama()
    log_probs_of_labels(model, ROWS[:4], batch_size=4, pad_token_id=0)
    log_probs_of_labels(model, ROWS, batch_size=4, pad_token_id=0)
    log_probs_of_labels(model, ROWS[:3], batch_size=4, pad_token_id=0)
    assert packs._tried[model] == {12: True, 16: True}


def test_bfloat16() -> None:
    model = tiny.llama(dtype=torch.bfloat16).eval()
    for one, values in zip(ROWS, log_probs_of_labels(model, ROWS, batch_size=4, pad_token_id=0), strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, alone(model, one).float(), atol=0.1, rtol=0.05)


def test_a_row_without_a_label_is_named() -> None:
    with pytest.raises(ValueError, match=r"rows\[1\]: none of its 2 tokens is scored"):
        log_probs_of_labels(
            tiny.llama(), [ROWS[0], {"input_ids": [1, 2], "labels": [-100, -100]}], batch_size=2, pad_token_id=0
        )


RECURRENT: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
    "jamba": {
        "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
        "num_experts": 2, "use_mamba_kernels": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_model_with_a_state_reads_no_trees_however_little_the_state_says(kind: str) -> None:
    """With weights as small as these, all it gives is almost the same: it would be taken for one that reads them."""
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = tiny.family(kind, **sizes, num_attention_heads=4, **RECURRENT[kind])
    assert packs._as_alone(model, max(packed(ROWS), key=len), 0, nullcontext)  # what the trial alone would say
    assert packs.is_recurrent(model)
    found = log_probs_of_labels(model, ROWS, batch_size=1, pad_token_id=0)
    assert list(packs._tried[model].values()) == [False]
    for one, values in zip(ROWS, found, strict=True):
        torch.testing.assert_close(values, alone(model, one), atol=1e-5, rtol=1e-5)


def test_a_model_of_attention_alone_has_no_state() -> None:
    assert not packs.is_recurrent(tiny.llama())
    assert not packs.is_recurrent(nn.Linear(2, 2))
