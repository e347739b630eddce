"""Cosines against gradients in float64, one row at a time; the bytes by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import llama, rows

from gru_fast.data.own import Piece
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import forecast
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known
from gru_fast.forget.options import ForgetConfig


def as_pieces(name: str, seed: int, count: int = 3) -> list[Piece]:
    return [Piece(name, i, row, 0, len(row["input_ids"]), 0, count) for i, row in enumerate(rows(count, seed))]


def gradient(pieces: list[Piece]) -> dict[str, torch.Tensor]:
    """Of the mean over rows of... the loss that is taken in batches of two: two rows' tokens together, then one's."""
    model = llama().double().eval()
    for batch, weight in ((pieces[:2], 2 / 3), (pieces[2:], 1 / 3)):
        losses = []
        for piece in batch:
            ids, labels = torch.tensor([piece.row["input_ids"]]), piece.row["labels"]
            log_probs = model(ids).logits[0].log_softmax(-1)
            losses += [-log_probs[t - 1, label] for t, label in enumerate(labels) if t and label != -100]
        (torch.stack(losses).mean() * weight).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part: str = "") -> float:
    x, y = (torch.cat([g.flatten() for name, g in one.items() if part in name]) for one in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


def test_cosines_are_those_of_float64() -> None:
    a, b, kept = as_pieces("a", 1), as_pieces("b", 2), as_pieces("kept", 3)
    model = llama()
    found = forecast.conflicts(Scorer(model, None, 0, batch_size=2), [a, b], kept, ["a", "b"])
    of_a, of_b, r = map(gradient, (a, b, kept))
    assert found.of_documents == pytest.approx({"a": cosine(of_a, r), "b": cosine(of_b, r)}, abs=1e-5)
    both = {name: of_a[name] + of_b[name] for name in of_a}
    assert list(found.of_layers) == ["0", "1", "other"]
    for layer in ("0", "1"):
        assert found.of_layers[layer] == pytest.approx(cosine(both, r, f".{layer}."), abs=1e-5)
    assert all(param.grad is None for param in model.parameters())


def test_what_is_kept_itself_has_a_cosine_of_one() -> None:
    kept = as_pieces("kept", 3)
    found = forecast.conflicts(Scorer(llama(), None, 0, batch_size=2), [kept], kept, ["kept"])
    assert found.of_documents["kept"] == pytest.approx(1.0, abs=1e-6)


def test_without_text_to_keep_the_cost_is_not_zero_but_unknown() -> None:
    level = Level.of("holdout", [Known(str(i), 9, 0.01, 0.1 * i, 0.0) for i in range(3)])
    known = [Known("a", 9, 0.9, 0.9, 0.9)]
    nothing_kept = forecast.Forecast(known, level, None, None, 150, 2**30, 2**30)
    assert "cost: not estimated for --retain none" in str(nothing_kept)
    assert "s a step" not in str(nothing_kept)
    kept = forecast.Forecast(known, level, None, 0.5, 150, 2**30, 2**30)
    assert "cost: 0.5 s a step, 150 steps at most (1.2 min)" in str(kept)


def test_bytes_of_a_training_by_hand(tmp_path: object) -> None:
    model = llama()
    count = sum(param.numel() for param in model.parameters())
    config = ForgetConfig(str(tmp_path), use_cpu=True)
    # Weights, g, two moments; with GRU the retain gradient and its average.
    assert forecast.bytes_needed(model, config) == 4 * count * 6
    assert forecast.bytes_needed(model, ForgetConfig(str(tmp_path), use_cpu=True, rectify=False)) == 4 * count * 4
    for param in model.model.layers[0].parameters():
        param.requires_grad_(False)
    frozen = sum(param.numel() for param in model.model.layers[0].parameters())
    assert forecast.bytes_needed(model, config) == 4 * (count + 5 * (count - frozen))
