"""Weights in a format: which they are, that they come back, and what of a step is left."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from gru_fast.attacks.parts import formats, weights

INT8 = formats.get("int8")


def test_matrices_are_rounded_tables_are_not() -> None:
    model = tiny.llama()
    names = [*weights.to_round(model)]
    assert names == [name for name, param in model.named_parameters() if name.endswith("_proj.weight")]
    with_head = {*weights.to_round(model, head=True)}
    assert with_head == {*names, "model.embed_tokens.weight", "lm_head.weight"}


def test_a_head_that_is_the_table_of_words_stays() -> None:
    model = tiny.llama(tie_word_embeddings=True)
    assert not any("embed" in name or "head" in name for name in weights.to_round(model))


@pytest.mark.parametrize("name", formats.names())
def test_rounded_inside_and_as_before_outside(name: str) -> None:
    model, form = tiny.llama(), formats.get(name)
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    rounded = weights.to_round(model)
    with weights.rounded(model, form):
        for key, param in model.named_parameters():
            expected = form.rounded(before[key]).values if key in rounded else before[key]
            assert torch.equal(param, expected), key
    assert all(torch.equal(param, before[key]) for key, param in model.named_parameters())


def test_they_come_back_after_an_error() -> None:
    model = tiny.llama()
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises(IndexError, match="index out of range"), weights.rounded(model, INT8):
        model(input_ids=torch.tensor([[tiny.VOCAB_SIZE]]))
    assert all(torch.equal(param, kept) for param, kept in zip(model.parameters(), before, strict=True))


def test_rows_are_outputs_where_a_module_has_inputs_in_its_rows() -> None:
    model = tiny.family("gpt2", vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    weight = model.transformer.h[0].attn.c_attn.weight  # (16 inputs, 48 outputs)
    with torch.no_grad():
        weight.mul_(torch.logspace(-3, 0, 48))  # outputs of very different size: a scale for each keeps them
        before = weight.clone()
    with weights.rounded(model, INT8):
        error = (weight.detach() - before).abs().amax(dim=0) / before.abs().amax(dim=0)
    assert float(error.max()) < 1 / 127


class Tiny(nn.Module):
    """One row of weights: 127 is its scale, so that int8's bins are whole numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[127.0, *values]]))


def test_what_survives_by_hand() -> None:
    original = Tiny(10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
    #                    bin  lost  lost  2 bins  same
    model = Tiny(11.0, 20.4, 29.6, 42.0, 50.0, 60.0, 70.0)
    found = weights.survival(original, model, INT8)
    assert (found.weights, found.changed, found.survived) == (8, 4, 0.5)
    # <(1, 0, 0, 2), (1, 0.4, -0.4, 2)> / (1 + 0.16 + 0.16 + 4)
    assert found.kept == pytest.approx(5 / 5.32, rel=1e-5)


def test_a_step_within_the_bins_is_gone_and_none_is_none() -> None:
    original = Tiny(10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
    within = weights.survival(original, Tiny(10.3, 19.7, 30.4, 39.6, 50.1, 60.2, 69.9), INT8)
    assert (within.changed, within.survived, within.kept) == (7, 0.0, 0.0)
    nothing = weights.survival(original, original, INT8)
    assert (nothing.changed, nothing.survived, nothing.kept) == (0, None, None)


def test_another_model_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"original: expected a weight .*q_proj.weight of shape \(32, 32\), got .*\(64, 64\)"
    ):
        weights.survival(tiny.llama(hidden_size=64), tiny.llama(), INT8)


def test_a_model_without_matrices_is_refused() -> None:
    model: Any = nn.Sequential(nn.LayerNorm(8))
    with pytest.raises(ValueError, match="expected matrices of 8 columns and more to round, got none"):
        weights.to_round(model)
