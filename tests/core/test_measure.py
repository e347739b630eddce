"""measure: the sums of a step, with the gradients left as they are."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gru_fast
from gru_fast.core.backends import choice, native


def make_params(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((5, 7), (70_001,), (), (0, 3))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def like(params: list[nn.Parameter], seed: int, sign: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        sign * p.grad + 0.5 * torch.randn(p.shape, generator=generator).to(p.dtype)  # type: ignore[operator]
        for p in params
    ]


def common(found: gru_fast.Rectification) -> list[Any]:
    return [found.dot, found.cos, found.angle_before, found.norm_before, found.norm_ema, found.conflict]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_sees_what_rectify_sees_and_leaves_g(
    dtype: torch.dtype, sign: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(native, "serves", lambda _: False)
        monkeypatch.setattr(choice, "_warned_devices", {"cpu"})
    params = make_params(dtype)
    other = make_params(dtype)
    retain = like(params, 1, sign)
    e, same_e = ([torch.ones_like(p, dtype=torch.float32) for p in params] for _ in range(2))
    before = [p.grad.clone() for p in params]  # type: ignore[union-attr]
    found = gru_fast.measure(params, e, 0.8, retain_grads=retain)
    step = gru_fast.rectify_(other, same_e, 0.8, 1.0, retain_grads=retain)
    assert common(found) == common(step)
    assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(e, same_e, strict=True))
    assert found.conflict == (sign < 0)
    assert (found.cos_after, found.angle_after, found.norm_after) == (found.cos, found.angle_before, found.norm_before)
    assert (found.alpha, found.beta) == (1.0, 0.0)
    assert not any((found.clipped, found.degenerate, found.nonfinite, found.skipped))


@pytest.mark.parametrize("how", ["collect", "stream"])
def test_it_ends_the_step_of_a_retain_ema(how: str) -> None:
    model = nn.Linear(3, 1)
    other = copy.deepcopy(model)
    x = torch.randn(4, 3)
    e, same_e = gru_fast.RetainEMA(model.parameters()), gru_fast.RetainEMA(other.parameters())
    for net, ema in ((model, e), (other, same_e)):
        with ema.collect(share=0.5) if how == "collect" else ema.stream(0.3, share=0.5):
            net(x).square().mean().backward()
        (-net(x).mean()).backward()
    expected = torch.autograd.grad(0.5 * other(x).square().mean() - other(x).mean(), list(other.parameters()))
    found = gru_fast.measure(model.parameters(), e, 0.3)
    step = gru_fast.rectify_(other.parameters(), same_e, 0.3)
    assert common(found) == common(step)
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert e.step == 1
    assert all(torch.equal(a, b) for a, b in zip(e.tensors, same_e.tensors, strict=True))


def test_nonfinite_gradients_are_reported() -> None:
    params = make_params()
    e = [torch.ones_like(p) for p in params]
    params[0].grad[0, 0] = math.nan  # type: ignore[index]
    found = gru_fast.measure(params, e, 0.5, retain_grads=[torch.ones_like(p) for p in params])
    assert found.grad_nonfinite
    assert found.skipped
    assert not found.conflict
    params = make_params()
    retain = like(params, 1)
    retain[0][0, 0] = math.inf
    found = gru_fast.measure(params, e, 0.5, retain_grads=retain)
    assert found.retain_nonfinite
    assert not found.skipped
    assert math.isfinite(found.cos)


def test_an_overflow_under_a_loss_scale_vetoes_the_step() -> None:
    model = nn.Linear(3, 1, bias=False)
    ema = gru_fast.RetainEMA(model.parameters())
    with ema.collect(scale=4.0):
        (model(torch.full((1, 3), math.inf)).sum()).backward()
    model.weight.grad = torch.ones_like(model.weight)
    found = gru_fast.measure(model.parameters(), ema, 0.5)
    assert found.skipped
    assert math.isnan(found.cos)
    assert not bool(ema.tensors[0].any())


def test_missing_gradients_count_as_zeros_and_are_not_made() -> None:
    params = make_params()
    params[1].grad = None
    e = [torch.ones_like(p) for p in params]
    found = gru_fast.measure(params, e, 0.5)
    assert params[1].grad is None
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in params if p.grad is not None))
    assert found.norm_before == pytest.approx(norm, rel=1e-6)


def test_nothing_to_measure() -> None:
    found = gru_fast.measure([], [], 0.5)
    assert not found.conflict
    assert found.norm_before == 0.0


def test_bad_arguments_are_named() -> None:
    params = make_params()
    with pytest.raises(ValueError, match=r"gamma: expected a number in \[0, 1\]"):
        gru_fast.measure(params, [torch.ones_like(p) for p in params], 1.5)
    with pytest.raises(ValueError, match="ema: expected 4 entries"):
        gru_fast.measure(params, [], 0.5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_there_is_no_angle_to_what_holds_inf(sign: float) -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([math.inf, 1.0])
    found = gru_fast.measure([param], [torch.tensor([sign, 1.0])], gamma=0.0)
    assert found.skipped
    assert math.isnan(found.cos)
    assert math.isnan(found.angle_before)
    assert math.isnan(found.cos_after)
