"""r itself in the place of its average: the same bits as an average that is r, without one."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gru_fast
from gru_fast import RetainEMA, RetainGradient, measure, rectify_
from gru_fast.core.backends import native, reference
from gru_fast.rules import HAMU, RULES, PCGrad

BY_SUMS = [name for name in RULES if name != "sago"]
SHAPES = ((3, 5), (0,), (70000,), (17,), ())


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters with a g that conflicts with r, and r."""
    generator = torch.Generator().manual_seed(seed)
    params, retain = [], []
    for shape in SHAPES:
        r, own = (torch.randn(shape, generator=generator) for _ in range(2))
        param = nn.Parameter(torch.zeros(shape, dtype=dtype))
        param.grad = (own - 0.5 * r).to(dtype)
        params.append(param)
        retain.append(r.to(dtype))
    return params, retain


def collected(keeper: Any, params: list[nn.Parameter], retain: list[Tensor], scale: float | None = None) -> None:
    with keeper.collect(scale):
        sum((p * r).sum() for p, r in zip(params, retain, strict=True)).mul(scale or 1.0).backward()  # type: ignore[union-attr]


def grads_of(params: list[nn.Parameter]) -> list[Tensor | None]:
    return [param.grad for param in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rule", [*(n for n in RULES if n != "sago"), PCGrad(form="mean"), HAMU(form="u", q=1.0)], ids=str
)
def test_it_is_an_average_with_gamma_one(rule: Any, dtype: torch.dtype) -> None:
    params, retain = parameters(dtype)
    same, _ = parameters(dtype)
    ema, direct = RetainEMA(same, dtype), RetainGradient(params)
    collected(ema, same, retain)
    expected = rectify_(same, ema, 1.0, 2.0, rule=rule)
    collected(direct, params, retain)
    step = rectify_(params, direct, tau=2.0, rule=rule)
    for ours, theirs in zip(grads_of(params), grads_of(same), strict=True):
        assert ours is not None
        assert torch.equal(ours, theirs)  # type: ignore[arg-type]
    assert step.as_dict() == expected.as_dict()
    assert direct.step == 1
    assert direct.pending_nbytes == 0


@pytest.mark.parametrize("how", ["handed in", "list", "none"])
def test_lists_of_retain_gradients(how: str) -> None:
    """They are only read, also where they are expanded, lie in another order or share memory."""
    params, retain = parameters()
    retain[0] = torch.arange(15.0).view(5, 3).t()
    retain[2] = torch.tensor(0.25).expand(70000)
    retain[3] = retain[0].t().flatten()[:15].new_ones(20)[:17]
    before = [r.clone() for r in retain]
    g = torch.cat([p.grad.double().flatten() for p in params])  # type: ignore[union-attr]
    x = torch.cat([r.double().flatten() for r in retain])
    keeper = None if how == "none" else RetainGradient(params)
    if how == "list":
        step = rectify_(params, keeper, 1.0, rule="gdr", retain_grads=tuple(retain))
    else:
        step = rectify_(params, keeper, rule="gdr", retain_grads=retain)
    d, m, u = g @ x, x @ x, g @ g
    expected = (1 - d / u) * g + (1 - d / m) * x if d < 0 else g + x
    found = torch.cat([p.grad.double().flatten() for p in params])  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert step.dot == pytest.approx(float(d), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(retain, before, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_missing_gradients_count_as_zeros(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(native, "serves", lambda device: False)
        monkeypatch.setattr("gru_fast.core.backends.choice.warn_of_fallback", lambda device: None)
    params = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    params[0].grad = torch.tensor([1.0, 2.0])
    params[1].grad = torch.tensor([3.0, 0.0])
    retain = [torch.tensor([-2.0, 0.0]), None, torch.tensor([0.0, 4.0]), None]
    # d = -2, u = 14, m = 20: alpha 1 + 2/14, beta 1 + 2/20
    rectify_(params, None, rule="gdr", retain_grads=retain)
    a, b = 8 / 7, 1.1
    expected = [[a - 2 * b, 2 * a], [3 * a, 0.0], [0.0, 4 * b]]
    for param, wanted in zip(params, expected, strict=False):
        assert param.grad is not None
        assert param.grad.tolist() == pytest.approx(wanted)
    assert params[3].grad is None
    # Without a conflict A-GEM has nothing to add, and makes no gradient.
    params[2].grad = None
    rectify_(params[2:3], None, rule="a_gem", retain_grads=retain[2:3])
    assert params[2].grad is None
    assert reference.ReferencePasses is not None


@pytest.mark.parametrize("rule", ["a_gem", "gdr", "gru"])
@pytest.mark.parametrize(("g", "r"), [(math.nan, 1.0), (1.0, math.inf), (math.nan, math.nan)])
def test_nan_leaves_g_and_says_whose_it_is(rule: str, g: float, r: float) -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([1.0, g])
    step = rectify_([param], None, rule=rule, retain_grads=[torch.tensor([-1.0, r])])
    assert step.skipped
    assert step.nonfinite
    assert step.grad_nonfinite == math.isnan(g)
    assert step.retain_nonfinite == (not math.isfinite(r))
    assert param.grad[0] == 1.0
    param.grad = torch.tensor([1.0, g])
    culprit = r"grads\[0\]" if math.isnan(g) else r"retain_grads\[0\]"
    with pytest.raises(RuntimeError, match=rf"^{culprit}: 1 of 2 elements are NaN or Inf; nothing was changed"):
        rectify_([param], None, rule=rule, retain_grads=[torch.tensor([-1.0, r])], error_if_nonfinite=True)
    assert param.grad[0] == 1.0


def test_micro_batches_share_and_scale() -> None:
    """Two micro-batches add up; with a loss scale r is unscaled, and g has its share, unscaled too."""
    params, retain = parameters()
    same, _ = parameters()
    direct = RetainGradient(params)
    for _ in range(2):
        with direct.collect(1024.0, share=0.5):
            (1024 * sum((p * r).sum() for p, r in zip(params, retain, strict=True))).backward()  # type: ignore[union-attr]
    step = rectify_(params, direct, rule="pcgrad")
    for param, r in zip(same, retain, strict=True):
        param.grad += r  # type: ignore[operator]
    expected = rectify_(same, None, rule="pcgrad", retain_grads=[2 * r for r in retain])
    assert step.dot == pytest.approx(expected.dot, rel=1e-6)
    for ours, theirs in zip(grads_of(params), grads_of(same), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parameters_whose_gradients_share_memory() -> None:
    """Unscaled once, not twice."""
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for param in params:
        param.grad = torch.tensor([1.0, 0.0])
    direct, shared = RetainGradient(params), torch.tensor([-4.0, 2.0])
    with direct.collect(2.0):
        for param in params:
            param.grad = shared
    step = rectify_(params, direct, rule="gdr")
    assert step.norm_ema == pytest.approx(math.sqrt(10.0))


def test_measure_looks_on() -> None:
    params, retain = parameters()
    before = [g.clone() for g in grads_of(params)]  # type: ignore[union-attr]
    found = measure(params, None, retain_grads=retain)
    assert found.conflict
    assert found.dot == pytest.approx(sum(float((a * r).sum()) for a, r in zip(before, retain, strict=True)), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, grads_of(params), strict=True))  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    params, retain = parameters()
    direct = RetainGradient([(f"p{i}", param) for i, param in enumerate(params)])
    with pytest.raises(ValueError, match=r"^gamma: expected None or 1 where r itself is rectified against, got 0\.5"):
        rectify_(params, direct, 0.5)
    with pytest.raises(TypeError, match=r"^ema: expected a RetainEMA or a list of tensors, got NoneType$"):
        rectify_(params, None, 0.5, retain_grads=retain)
    with pytest.raises(TypeError, match=r"^gamma: expected a number in \[0, 1\], got NoneType$"):
        rectify_(params, RetainEMA(params))
    with pytest.raises(ValueError, match=r"^retain_grads: expected this step's retain gradients, collected or handed"):
        rectify_(params, direct)
    with pytest.raises(ValueError, match=r"^retain_grads: expected a list of tensors where ema is None, got None$"):
        rectify_(params, None)
    with pytest.raises(ValueError, match=r"^params: expected all 5 parameters the RetainGradient follows, but 1 are"):
        rectify_(params[1:], direct, retain_grads=retain)
    with pytest.raises(ValueError, match=r'^grads\[0\] "p0": expected shape \(5, 3\) as its retain gradient, got'):
        rectify_(params, direct, retain_grads=[retain[0].t(), *retain[1:]])
    with pytest.raises(TypeError, match=r'^retain_grads\[3\] "p3": expected float32 or the gradient\'s float32, got'):
        rectify_(params, direct, retain_grads=[*retain[:3], retain[3].bfloat16(), retain[4]])
    with pytest.raises(TypeError, match=r"^retain_grads\[1\]: expected a torch\.Tensor, got str$"):
        rectify_(params, None, retain_grads=[retain[0], "r", *retain[2:]])  # type: ignore[list-item]
    with direct.collect(), pytest.raises(RuntimeError, match=r"^discard inside collect\(\)"):
        direct.discard()
    with pytest.raises(TypeError, match="RetainGradient: cannot be copied or pickled"):
        copy.deepcopy(direct)
    with pytest.raises(TypeError, match="RetainGradient: cannot be copied or pickled"):
        pickle.dumps(direct)
    with pytest.raises(ValueError, match=r"^state_dict: expected the keys of RetainGradient"):
        direct.load_state_dict({})


def test_what_it_says_of_itself() -> None:
    params, retain = parameters()
    direct = RetainGradient([(f"p{i}", param) for i, param in enumerate(params)])
    assert repr(direct) == "RetainGradient(5 parameters, 70,033 elements, 0 steps)"
    assert direct.names == [f"p{i}" for i in range(5)]
    assert direct.devices == [torch.device("cpu")]
    assert len(direct.params) == len(direct) == 5
    assert direct.tensors == []
    collected(direct, params, retain)
    assert direct.pending_nbytes == 4 * 70033
    direct.discard()
    assert direct.pending_nbytes == direct.step == 0
    ema = RetainEMA(params)
    rectify_(params, ema, 0.5, retain_grads=retain)
    direct.load_state_dict(ema.state_dict())
    assert direct.state_dict()["step"] == 1


def test_the_example_of_its_docstring() -> None:
    w = nn.Parameter(torch.zeros(2))
    retain = RetainGradient([w])
    with retain.collect():
        (w * torch.tensor([0.0, 2.0])).sum().backward()
    w.grad = torch.tensor([1.0, -1.0])
    gru_fast.rectify_([w], retain, rule="pcgrad")
    assert w.grad.tolist() == [1.0, 2.0]
