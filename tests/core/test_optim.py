"""``gru_fast.optim.AdamW``: torch's where there is nothing to rectify, and what it promises of the update."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from adamw_oracle import Oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gru_fast import RetainEMA, rectify_
from gru_fast.core import adamw_step, update
from gru_fast.core.backends.adamw import AdamWArgs, AdamWRows
from gru_fast.core.backends.native import NativeAdamW
from gru_fast.core.backends.reference_adamw import ReferenceAdamW
from gru_fast.optim import AdamW

SIZES = (1, 7, 64, 1000, 70_001)  # below a block, whole blocks, tails, more than a rounding tile


def parameters(sizes: Sequence[int] = SIZES, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def give(params: Sequence[Tensor], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


def take_step(optimizer: AdamW, g: Sequence[Tensor | None], r: Sequence[Tensor | None] | None) -> None:
    """One step from gradients that are there already."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if r is not None and optimizer.ema is not None:
        with optimizer.ema.collect():
            for param, value in zip(params, r, strict=True):
                param.grad = None if value is None else value.clone()
    for param, value in zip(params, g, strict=True):
        param.grad = None if value is None else value.clone()
    optimizer.step()


def flat(tensors: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors]).numpy()


# ---- torch's AdamW ---------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.999), 0.1), ((0.3, 0.5), 0.0), ((0.0, 0.99), 0.01)])
def test_fifty_steps_are_those_of_torch_bit_for_bit(betas: tuple[float, float], decay: float, maximize: bool) -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 3e-3, "betas": betas, "weight_decay": decay, "maximize": maximize}
    mine, torchs = AdamW(ours, **options), torch.optim.AdamW(theirs, fused=True, **options)
    for step in range(50):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            give(params, step, 10.0 ** (step % 5 - 2))
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        exact = torch.backends.cpu.get_cpu_capability() != "DEFAULT"  # with fused multiply-add
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-6, atol=1e-7)
        for name in ("exp_avg", "exp_avg_sq"):
            left, right = mine.state[a][name], torchs.state[b][name]
            assert torch.equal(left, right) if exact else torch.allclose(left, right, rtol=1e-5, atol=1e-9)


def test_a_rectified_gradient_gives_what_rectifying_and_torch_give() -> None:
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=1e-2, ema=RetainEMA(ours), gamma=0.5, tau=1.0)
    torchs, ema = torch.optim.AdamW(theirs, lr=1e-2, fused=True), RetainEMA(theirs)
    conflicts = 0
    for step in range(20):
        give(theirs, 100 + step)
        r = [param.grad.clone() for param in theirs]  # type: ignore[union-attr]
        give(theirs, 200 + step)
        g = [param.grad - 0.5 * other for param, other in zip(theirs, r, strict=True)]  # type: ignore[operator]
        take_step(mine, g, r)
        with ema.collect():
            for param, value in zip(theirs, r, strict=True):
                param.grad = value.clone()
        for param, value in zip(theirs, g, strict=True):
            param.grad = value.clone()
        expected = rectify_(theirs, ema, 0.5, 1.0)
        torchs.step()
        assert mine.last_step is not None
        assert mine.last_step.dot == expected.dot
        assert mine.last_step.norm_after == pytest.approx(expected.norm_after, rel=1e-6)
        conflicts += expected.conflict
        assert all(torch.equal(param.grad, value) for param, value in zip(ours, g, strict=True))  # type: ignore[arg-type]
    assert 5 < conflicts
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_write_grad_leaves_the_rectified_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        params = [nn.Parameter(torch.zeros(2, dtype=dtype))]
        optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0, write_grad=True)
        take_step(optimizer, [torch.tensor([1.0, -1.0], dtype=dtype)], [torch.tensor([0.0, 2.0], dtype=dtype)])
        assert torch.equal(params[0].grad, torch.tensor([1.0, 0.0], dtype=dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("capturable", [False, True])
def test_states_are_exchanged_with_torch_both_ways(capturable: bool) -> None:
    params, others = parameters(), parameters()
    first, second = AdamW(params, lr=1e-2), torch.optim.AdamW(others, lr=1e-3, fused=True)
    for step in range(3):
        give(params, step)
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["lr"] == 1e-2
    with torch.no_grad():
        for a, b in zip(params, others, strict=True):
            b.copy_(a)
    third_params = [nn.Parameter(param.detach().clone()) for param in params]
    third = AdamW(third_params, lr=1e-4)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    for step in range(3, 6):
        for group, optimizer in ((params, first), (others, second), (third_params, third)):
            give(group, step)
            optimizer.step()
    assert all(map(torch.equal, params, third_params))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(params, others, strict=True))
    assert set(first.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_schedulers_closures_and_groups_work() -> None:
    a, b = parameters((5,)), parameters((6,))
    theirs = [nn.Parameter(param.detach().clone()) for param in (*a, *b)]

    def groups(first: list[Any], second: list[Any]) -> list[dict[str, Any]]:
        return [{"params": first, "lr": 1e-2}, {"params": second, "weight_decay": 0.5, "betas": (0.5, 0.9)}]

    mine = AdamW(groups(a, b), lr=1e-3)
    torchs = torch.optim.AdamW(groups(theirs[:1], theirs[1:]), lr=1e-3, fused=True)
    for optimizer, params in ((mine, [*a, *b]), (torchs, theirs)):
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)

        def closure(params: list[Any] = params, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = sum((param**2).sum() for param in params)  # type: ignore[assignment]
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure)), *(float(optimizer.step(closure)) for _ in range(3) if not schedule.step())]
        assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(x, y) for x, y in zip([*a, *b], theirs, strict=True))


# ---- the update ------------------------------------------------------------------------------------------------------


def test_an_update_is_rectified_by_hand() -> None:
    # b1 = b2 = 0: U = g / (|g| + eps) = (-1, 1, -1) + decay theta (0.5, 0, 0). e = (1, 0, 2): <U, e> = -0.5 - 2 = -2.5.
    # W = 1: Z = U + (2.5 / 5) e = (0, 1, 0); theta - 0.1 Z = (1, -0.1, 0).
    params = [nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))]
    optimizer = AdamW(
        params, lr=0.1, betas=(0.0, 0.0), eps=0.0, weight_decay=0.5, ema=RetainEMA(params), gamma=1.0, rectify="update"
    )
    take_step(optimizer, [torch.tensor([-3.0, 4.0, -5.0])], [torch.tensor([1.0, 0.0, 2.0])])
    assert torch.allclose(params[0], torch.tensor([1.0, -0.1, 0.0]), atol=1e-7)
    step = optimizer.last_step
    assert step is not None
    assert step.update_conflict
    assert step.update_dot == pytest.approx(-0.25)
    assert step.update_cos == pytest.approx(-2.5 / math.sqrt(2.25 * 5))
    assert step.update_cos_after == 0.0
    assert step.update_change == pytest.approx(0.1 * 0.5 * math.sqrt(5))
    assert step.update_largest == pytest.approx(1.0)
    assert step.as_dict()["update_norm"] == pytest.approx(0.15)


def test_the_floor_keeps_elements_without_a_history_where_they_are() -> None:
    # M^ = (-1, 0), V^ = (1, 1e-16), eps 1e-8, e = (1, 0.001): with W = D element 2 would move by 980 |U|.
    params = [nn.Parameter(torch.zeros(2))]
    optimizer = AdamW(
        params, lr=1.0, betas=(0.0, 0.0), eps=1e-8, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0,
        rectify="update", metric="adam",
    )  # fmt: skip
    take_step(optimizer, [torch.tensor([-1.0, 0.0])], [torch.tensor([1.0, 0.001])])
    step = optimizer.last_step
    assert step is not None
    assert step.update_largest < 1.01
    assert abs(float(params[0][1])) < 0.01
    assert abs(float(params[0] @ torch.tensor([1.0, 0.001]))) < 1e-6


def test_learning_rates_of_groups_count() -> None:
    # U = (-1, 1), e = (1, 1): <U, e> = 0, but with lr (0.3, 0.1) the step's is -0.3 + 0.1 = -0.2, and K = 0.4:
    # Z = U + 0.5 e = (-0.5, 1.5), lr Z = (-0.15, 0.15).
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))]
    groups = [{"params": [params[0]], "lr": 0.3}, {"params": [params[1]], "lr": 0.1}, {"params": [params[2]], "lr": 0.0}]
    optimizer = AdamW(
        groups, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0, rectify="update"
    )
    ones = [torch.ones(1)] * 3
    take_step(optimizer, [-2 * ones[0], 5 * ones[0], ones[0]], ones)
    assert float(params[0]) == pytest.approx(0.15)
    assert float(params[1]) == pytest.approx(-0.15)
    assert float(params[2]) == 1.0  # a learning rate of 0 is a parameter at rest


OPTIONS = [
    {"rectify": "gradient"},
    {"rectify": "gradient", "tau": 0.5},
    {"rectify": "update"},
    {"rectify": "update", "tau": 0.5},
    {"rectify": "both"},
    {"rectify": "both", "metric": "adam"},
    {"rectify": "update", "metric": "adam", "feed_back": True},
    {"rectify": "both", "feed_back": True},
]


@pytest.mark.core
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_steps_are_those_of_float64(backend: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(adamw_step, "NativeAdamW", ReferenceAdamW)
    params = parameters((3, 40, 1001))
    optimizer = AdamW(
        [{"params": params[:2], "lr": 2e-2, "weight_decay": 0.0}, {"params": params[2:]}],
        lr=1e-2, weight_decay=0.1, ema=RetainEMA(params), gamma=0.4, **options,
    )  # fmt: skip
    oracle = Oracle(
        flat(params),
        lr=np.repeat([2e-2, 1e-2], [43, 1001]),
        decay=np.repeat([0.0, 0.1], [43, 1001]),
        gamma=0.4,
        tau=options.get("tau", np.inf),
        gradient=options["rectify"] != "update",
        update=options["rectify"] != "gradient",
        adam=options.get("metric") == "adam",
        feed_back=options.get("feed_back", False),
    )
    fired = 0
    for step in range(12):
        give(params, 2 * step)
        r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
        give(params, 2 * step + 1)
        g = [param.grad - 0.3 * other for param, other in zip(params, r, strict=True)]  # type: ignore[operator]
        take_step(optimizer, g, r)
        q = oracle.step(flat(g), flat(r))
        assert np.abs(flat(params) - oracle.theta).max() < 2e-5
        if oracle.update:
            assert optimizer.last_step is not None
            assert optimizer.last_step.update_dot == pytest.approx(q, rel=1e-3, abs=1e-4)
            fired += q < 0
    assert not oracle.update or fired > 3


vectors = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6)


@given(vectors, vectors, vectors, st.sampled_from(["euclidean", "adam"]), st.sampled_from(["update", "both"]))
@settings(deadline=None, max_examples=80)
def test_no_step_raises_the_retain_loss(
    theta: list[float], g: list[float], r: list[float], metric: str, what: str
) -> None:
    params = [nn.Parameter(torch.tensor(theta[:4])), nn.Parameter(torch.tensor(theta[4:]))]
    optimizer = AdamW(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 0.1}],
        weight_decay=0.1, eps=1e-3, ema=RetainEMA(params), gamma=0.7, rectify=what, metric=metric,
    )  # fmt: skip
    for turn in range(3):
        before = flat(params)
        grads = [torch.tensor(g[:4]) * (-1.0) ** turn, torch.tensor(g[4:])]
        take_step(optimizer, grads, [torch.tensor(r[:4]), torch.tensor(r[4:])])
        moved = before - flat(params)
        e = flat(optimizer.ema.tensors)  # type: ignore[union-attr]
        assert moved @ e >= -3e-6 * (np.linalg.norm(moved) + np.linalg.norm(before)) * np.linalg.norm(e)


def test_an_update_without_conflict_is_left_to_the_bit() -> None:
    params, others = parameters(), parameters()
    both = AdamW(params, lr=1e-2, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0, rectify="both")
    plain = AdamW(others, lr=1e-2, weight_decay=0.0)
    for step in range(4):
        give(others, 7)
        g = [param.grad.clone() for param in others]  # type: ignore[union-attr]
        take_step(both, g, g)
        assert both.last_step is not None
        assert not both.last_step.update_conflict, step
        plain.step()
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_small_or_large_e_is_as_good(scale: float) -> None:
    def run(factor: float) -> list[nn.Parameter]:
        params = parameters((100,))
        optimizer = AdamW(params, lr=1e-2, ema=RetainEMA(params), gamma=1.0, rectify="update")
        for step in range(3):
            give(params, step)
            r = params[0].grad.clone() * factor  # type: ignore[union-attr]
            give(params, step + 50)
            take_step(optimizer, [params[0].grad.clone() - r / factor], [r])  # type: ignore[union-attr]
            assert optimizer.last_step is not None
            assert optimizer.last_step.update_conflict
        return params

    assert torch.allclose(run(1.0)[0], run(scale)[0], rtol=1e-5, atol=1e-6)
