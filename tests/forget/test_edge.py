"""To the edge of what may be lost, on functions whose edge is known, and on models whose mixtures can be read off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import llama

from gru_fast.forget.edge import mixed, to_the_edge
from gru_fast.forget.watch import Point
from gru_fast.models.adapters import with_lora


def edge(keep: float, kept: float, resolution: float = 0.01) -> tuple[Point, list[Point], list[float]]:
    """Of a model that keeps 1 - (1 - kept) * alpha."""
    current: list[float] = [1.0]

    def look(alpha: float) -> Point:
        assert alpha == current[-1]
        now = 1 - (1 - kept) * current[-1]
        measures = {"probability": 0.1, "exact_memorization": 1 - alpha, "extraction_strength": 0.0}
        return Point(7, measures, 0, removed=False, kept=now, perplexities={}, alpha=alpha)

    return *to_the_edge(current.append, look, keep, resolution), current


def test_the_largest_mixture_that_keeps_the_share() -> None:
    chosen, seen, set_to = edge(keep=0.95, kept=0.8)
    assert 0.24 <= chosen.alpha <= 0.25  # 0.2 * alpha = 0.05
    assert chosen.kept >= 0.95
    assert set_to[-1] == chosen.alpha
    assert [point.alpha for point in seen] == sorted(point.alpha for point in seen)
    assert min(point.alpha for point in seen if point.kept < 0.95) - chosen.alpha <= 0.01


def test_a_model_that_keeps_it_is_left_whole() -> None:
    chosen, seen, _ = edge(keep=0.75, kept=0.8)
    assert (chosen.alpha, len(seen)) == (1.0, 1)


def test_where_nothing_may_be_lost_the_original_is_left() -> None:
    chosen, _, set_to = edge(keep=1.0, kept=0.2, resolution=0.5)
    assert chosen.alpha == set_to[-1] == 0.0
    assert chosen.kept == 1.0


def test_a_model_is_mixed_with_its_original_and_stays_so() -> None:
    original, model = llama(seed=1), llama(seed=2)
    a, b = (dict(one.named_parameters()) for one in (original, llama(seed=2)))
    with mixed(model, lambda: original) as set_alpha:
        set_alpha(0.9)
        set_alpha(0.25)
    for name, param in model.named_parameters():
        torch.testing.assert_close(param, 0.25 * b[name] + 0.75 * a[name])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_lora_adds_is_scaled(alpha: float) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    model = with_lora(llama(), r=2, alpha=4, dropout=0.0, targets=["q_proj"]).eval()
    torch.manual_seed(0)
    factors = [param for name, param in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for param in factors:
            param.normal_()
    whole = [param.clone() for param in factors]
    with mixed(model, lambda: pytest.fail("the original is not needed")) as set_alpha:
        set_alpha(alpha)
    for param, value in zip(factors, whole, strict=True):
        torch.testing.assert_close(param.detach(), alpha * value.detach())
    if alpha == 0.0:
        torch.testing.assert_close(model(ids).logits, llama().eval()(ids).logits)


def test_points_come_back_from_a_file(tmp_path: Path) -> None:
    from gru_fast.forget import watch

    chosen, seen, _ = edge(keep=0.9, kept=0.8)
    import json

    (tmp_path / watch.PROGRESS).write_text("".join(json.dumps(point.to_json()) + "\n" for point in seen))
    assert watch.read_points(tmp_path) == seen
    assert watch.read_points(tmp_path / "elsewhere") == []
    assert chosen in seen
