"""UWC: the search for alpha, on utilities that are known, and models between two."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import llama

from gru_fast.unlearn.uwc import interpolated, largest_alpha


class Counted:
    """A utility that says where it was asked."""

    def __init__(self, of: Callable[[float], float]) -> None:
        self.of = of
        self.asked: list[float] = []

    def __call__(self, alpha: float) -> float:
        self.asked.append(alpha)
        return self.of(alpha)


@pytest.mark.parametrize("target", [0.31, 0.5, 0.77, 0.999])
def test_falling_utility(target: float) -> None:
    """The largest alpha of 1 - alpha^2 that keeps the target is sqrt(1 - target)."""
    utility = Counted(lambda alpha: 1 - alpha * alpha)
    found = largest_alpha(utility, target, {}, resolution=0.01)
    assert found is not None
    assert math.sqrt(1 - target) - 0.01 <= found <= math.sqrt(1 - target)
    assert len(utility.asked) == 2 + 7  # both ends, and halves until 1/128


def test_ends() -> None:
    assert largest_alpha(lambda alpha: 1.0, 1.0, {}) == 1.0
    assert largest_alpha(lambda alpha: 1 - 0.5 * alpha, 0.5, {}) == 1.0
    assert largest_alpha(lambda alpha: 1 - alpha, 1.0, {}) == 0.0
    assert largest_alpha(lambda alpha: 1 - alpha, 1.1, {}) is None


def test_points_are_used_again() -> None:
    utility, points = Counted(lambda alpha: 1 - alpha), {}
    for target in (0.85, 0.9, 0.95):
        largest_alpha(utility, target, points)
    assert len(utility.asked) == len(set(utility.asked)) == len(points) < 3 * 8
    before = len(points)
    assert largest_alpha(utility, 0.9, points) == largest_alpha(utility, 0.9, points)
    assert len(points) == before


@pytest.mark.parametrize("seed", range(5))
def test_what_is_guaranteed_where_utility_is_not_monotone(seed: int) -> None:
    torch.manual_seed(seed)
    phase, points = torch.rand(3).tolist(), {}
    for target in (0.5, 0.6, 0.8):
        found = largest_alpha(
            lambda alpha: 1 - alpha / 2 + 0.4 * math.sin(20 * alpha * phase[0] + phase[1]) * alpha, target, points, 0.05
        )
        assert found is not None
        assert points[found] >= target
        larger = sorted(alpha for alpha in points if alpha > found)
        assert all(points[alpha] < target for alpha in larger)
        assert not larger or larger[0] - found <= 0.05


def test_wrong_uses() -> None:
    with pytest.raises(ValueError, match=r"resolution: expected a number in \(0, 1\], got 0"):
        largest_alpha(lambda alpha: 1.0, 0.5, {}, resolution=0)
    with pytest.raises(ValueError, match="target: expected a finite number, got nan"):
        largest_alpha(lambda alpha: 1.0, math.nan, {})
    with pytest.raises(ValueError, match="utility: expected a number at alpha 0, got nan; are sets missing"):
        largest_alpha(lambda alpha: math.nan, 0.5, {})


def test_models_between() -> None:
    unlearned, original = llama(seed=1), llama(seed=0)
    ends = [{n: p.detach().clone() for n, p in model.named_parameters()} for model in (original, unlearned)]
    with interpolated(unlearned, original) as set_alpha:
        for alpha in (0.25, 1.0, 0.0, 0.75):
            set_alpha(alpha)
            for name, param in unlearned.named_parameters():
                torch.testing.assert_close(param.detach(), alpha * ends[1][name] + (1 - alpha) * ends[0][name])
        set_alpha(0.0)
        assert all(torch.equal(param, ends[0][name]) for name, param in unlearned.named_parameters())
    assert all(torch.equal(param, ends[1][name]) for name, param in unlearned.named_parameters())
    assert all(torch.equal(param, ends[0][name]) for name, param in original.named_parameters())


def test_models_of_two_kinds() -> None:
    with (
        pytest.raises(ValueError, match=r"the unlearned model alone has .model.layers.1"),
        interpolated(llama(), llama(num_hidden_layers=1)),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r'expected "model.embed_tokens.weight" of shape \(48, 32\)'),
        interpolated(llama(), llama(vocab_size=50)),
    ):
        pass
