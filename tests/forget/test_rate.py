"""The learning rate of one step: on a model whose step and losses can be followed by hand, and NPO's two numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import llama, rows

from gru_fast.data.own import Piece
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import rate
from gru_fast.forget.exam import Texts
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known
from gru_fast.forget.options import ForgetConfig
from gru_fast.forget.request import Documents, Request

LEVEL = Level.of("holdout", [Known(str(i), 9, 1e-6, 0.1, 0.0) for i in range(3)])


def as_pieces(seed: int, count: int) -> list[Piece]:
    return [Piece(str(i), 0, row, 0, len(row["input_ids"]), 0, 1) for i, row in enumerate(rows(count, seed))]


def request() -> Request:
    forget, retain, held = as_pieces(1, 3), as_pieces(2, 8), as_pieces(3, 4)
    nothing = Documents([], [], [], [])
    return Request(nothing, forget, retain, Texts(forget, {"retain": held}, [], "holdout"))


def search(model: Any, keep: float, **settings: Any) -> rate.Found:
    made = request()
    config = ForgetConfig("unused", use_cpu=True, **settings)
    return rate.search(Scorer(model, None, 0), made, made.texts, LEVEL, config, keep)


def test_the_largest_rate_whose_step_fits_is_taken_and_the_model_is_as_it_was() -> None:
    model = llama()
    found = search(model, keep=0.8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), llama().parameters(), strict=True))
    assert all(param.grad is None for param in model.parameters())
    least = 1 - rate.COST * 0.2
    fits = [kept >= least and way <= 1 / rate.LEAST_STEPS for _, kept, way in found.tried]
    assert fits == [True] * (len(fits) - 1) + [False]
    assert found.learning_rate == found.tried[-2][0]
    ratios = [b[0] / a[0] for a, b in zip(found.tried, found.tried[1:], strict=False)]
    assert ratios == pytest.approx([10**0.25] * len(ratios))


def test_a_step_moves_every_weight_by_the_rate_against_the_documents() -> None:
    model = llama().double()
    made = request()
    config = ForgetConfig("unused", use_cpu=True, method="npo", rectify=False, per_device_train_batch_size=3)
    before = [param.detach().clone() for param in model.parameters()]
    with rate._first_step(Scorer(model, None, 0), made, config) as step:
        step(1e-4)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before, strict=True)]).detach()
    assert float(moved.abs().max()) <= 1e-4 * (1 + 1e-9)
    assert float((moved.abs() > 0.99e-4).double().mean()) > 0.5  # the others have next to no gradient
    from gru_fast.forget.exam import look

    was, now = (look(Scorer(one, None, 0), made.texts).forget for one in (llama().double(), model))
    assert all(b.probability < a.probability for a, b in zip(was, now, strict=True))


def test_less_may_be_lost_with_a_smaller_rate() -> None:
    assert search(llama(), keep=0.999).learning_rate < search(llama(), keep=0.7).learning_rate


def test_npo_fades_at_the_level_and_a_text_to_keep_counts_as_one_to_forget() -> None:
    made = SimpleNamespace(forget=as_pieces(1, 3))
    tokens = sum(sum(label != -100 for label in piece.row["labels"]) for piece in made.forget) / 3
    known = [Known("a", 9, 0.5, 0.9, 0.0)]
    found = rate.npo(known, made, LEVEL)  # type: ignore[arg-type]
    assert found["retain_weight"] == pytest.approx(tokens)
    assert found["beta"] == pytest.approx(min(0.1, 2.5 / (tokens * math.log(0.5 / 1e-6))))
    near = Level.of("holdout", [Known(str(i), 9, 0.49, 0.1, 0.0) for i in range(3)])
    assert rate.npo(known, made, near)["beta"] == 0.1  # type: ignore[arg-type]
    below = Level.of("holdout", [Known(str(i), 9, 0.6, 0.1, 0.0) for i in range(3)])
    assert rate.npo(known, made, below)["beta"] == 0.1  # type: ignore[arg-type]
