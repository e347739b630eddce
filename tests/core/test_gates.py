"""SAGO: each element by itself, in one pass; what it tells, and what NaN does to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gru_fast import RetainEMA, RetainGradient, rectify_
from gru_fast.core import stats as fields
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.reference import ReferencePasses
from gru_fast.core.load import core
from gru_fast.core.rules import SAGO, settle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = [SAGO(), SAGO(form="prefer_retain"), SAGO(w_r=0.5), SAGO(form="prefer_retain", w_f=2.0, w_r=0.25)]
both_passes = pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])


def expected_of(rule: SAGO, g: float, x: float) -> float:
    """One element, from the definition."""
    if (g < 0.0 < x) or (x < 0.0 < g):
        return rule.w_r * x
    return rule.w_f * g + (rule.w_r * x if rule.form == "prefer_retain" else 0.0)


def gated(
    passes: Callable[..., Any], rule: SAGO, grads: list[Tensor | None], x: list[Tensor], tau: float = math.inf
) -> Any:
    made = passes(Rows(grads, None, x, ema_is_current=True, is_direct=True))
    args = StepArgs(1.0, 0.0, tau, rule)
    made.gate(args, is_first=True)
    made.finish(args)
    return made.stats


@pytest.mark.core
@pytest.mark.parametrize(
    ("w_f", "w_r", "form", "expected"), [(1.0, 1.0, "sago", -1.0), (1.0, 0.5, "prefer_retain", -0.5)]
)
@both_passes
def test_one_parameter_that_they_disagree_on(
    passes: Callable[..., Any], w_f: float, w_r: float, form: str, expected: float
) -> None:
    grads: list[Tensor | None] = [torch.tensor([1.0])]
    stats = gated(passes, SAGO(form=form, w_f=w_f, w_r=w_r), grads, [torch.tensor([-1.0])])
    assert grads[0] is not None
    assert grads[0].tolist() == [expected]
    assert stats[fields.BETA] == 1.0
    assert stats[fields.CONFLICT] == 1.0


numbers = st.lists(st.one_of(st.just(0.0), st.floats(-100, 100, width=16)), min_size=37, max_size=37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", FORMS, ids=repr)
@both_passes
@given(numbers, numbers)
@settings(deadline=None, max_examples=15)
def test_every_element(
    passes: Callable[..., Any], rule: SAGO, dtype: torch.dtype, g: list[float], x: list[float]
) -> None:
    grads = [part.clone() for part in torch.tensor(g).to(dtype).split([1, 36])]
    retain = [part.clone() for part in torch.tensor(x).to(dtype).split([1, 36])]
    before, against = torch.cat(grads).double(), torch.cat(retain).double()
    stats = gated(passes, rule, list(grads), retain)
    wanted = torch.tensor([expected_of(rule, a, b) for a, b in zip(before.tolist(), against.tolist(), strict=True)])
    found = torch.cat(grads)
    torch.testing.assert_close(found.float(), wanted.to(dtype).float(), rtol=torch.finfo(dtype).eps, atol=1e-4)
    out = found.double()
    told = {
        fields.DOT: before @ against, fields.EMA_NORM_SQ: against @ against, fields.GRAD_NORM_SQ: before @ before,
        fields.OUT_NORM_SQ: out @ out, fields.ALPHA: out @ against, fields.BETA: (before * against < 0).sum(),
    }  # fmt: skip
    for at, value in told.items():
        assert stats[at].item() == pytest.approx(float(value), rel=1e-6, abs=1e-6)
    assert bool((out * against >= 0).all())  # what it promises
    scale = torch.linspace(1e-3, 1e3, 37, dtype=torch.float64)
    assert float((out * scale) @ against) >= 0.0  # under any preconditioner
    assert bool(stats[fields.DEGENERATE]) == (bool(before.any()) and not out.any())


@pytest.mark.core
@pytest.mark.parametrize("tau", [0.5, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_clipped_by_a_second_scale(dtype: torch.dtype, tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(70001,), (0,), (33, 3), ()]
    params, retain = [], []
    for shape in shapes:
        param = nn.Parameter(torch.zeros(shape, dtype=dtype))
        param.grad = torch.randn(shape, generator=generator).to(dtype)
        params.append(param)
        retain.append(torch.randn(shape, generator=generator).to(dtype))
    before = torch.cat([p.grad.double().flatten() for p in params])  # type: ignore[union-attr]
    x = torch.cat([r.double().flatten() for r in retain])
    step = rectify_(params, None, tau=tau, rule=SAGO(form="prefer_retain"), retain_grads=retain)
    found = torch.cat([p.grad.double().flatten() for p in params])  # type: ignore[union-attr]
    exact = torch.where(before * x < 0, x, before + x)
    norm = float(exact.norm())
    exact = exact * min(1.0, tau / norm)
    torch.testing.assert_close(found, exact, rtol=2.0 * torch.finfo(dtype).eps, atol=1e-4)
    assert float(found.norm()) <= tau * (1 + 1e-3)
    assert step.clipped == (tau < norm)
    assert step.opposed == int((before * x < 0).sum())
    assert step.norm_before == pytest.approx(float(before.norm()), rel=1e-6)
    assert step.norm_ema == pytest.approx(float(x.norm()), rel=1e-6)
    assert float(found.norm()) <= step.norm_after * (1 + 1e-6)  # 16-bit: scaled towards zero, an upper bound
    assert step.norm_after == pytest.approx(float(found.norm()), rel=1e-6 + torch.finfo(dtype).eps)
    assert step.cos_after == pytest.approx(
        float(found @ x / found.norm() / x.norm()), rel=1e-6 + torch.finfo(dtype).eps
    )
    assert math.isnan(step.alpha)
    assert math.isnan(step.beta)


@pytest.mark.parametrize("how", ["collect", "stream", "list"])
def test_against_an_average(how: str) -> None:
    """e is updated first, and only then gated."""
    param = nn.Parameter(torch.zeros(3))
    r, old = torch.tensor([4.0, -4.0, 0.0]), torch.tensor([0.0, 1.0, -2.0])
    ema = [old.clone()]
    kept = RetainEMA([param])
    kept.tensors[0].copy_(old)
    param.grad = torch.tensor([-1.0, 2.0, 3.0])
    if how == "list":
        step = rectify_([param], ema, 0.5, retain_grads=[r], rule="sago")
    else:
        with kept.stream(0.5) if how == "stream" else kept.collect():
            (param * r).sum().backward()
        step = rectify_([param], kept, 0.5, rule="sago")
        ema = kept.tensors
    assert ema[0].tolist() == [2.0, -1.5, -1.0]
    assert param.grad.tolist() == [2.0, -1.5, -1.0]
    assert step.opposed == 3


@pytest.mark.core
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("rule", FORMS[:2], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_passes
def test_nan_is_not_hidden(passes: Callable[..., Any], dtype: torch.dtype, rule: SAGO, where: str, bad: float) -> None:
    """In one pass it is NaN in g afterwards, in its place, and the step is to be skipped."""
    g, x = torch.tensor([1.0, 2.0, 3.0], dtype=dtype), torch.tensor([1.0, 1.0, -1.0])
    if math.isnan(bad):  # one that rounding to 16 bits would carry over into a zero
        bad = float(torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32))
    (g if where == "g" else x)[1] = bad
    stats = gated(passes, rule, [g], [x], tau=0.1)
    assert math.isnan(g[1])
    assert math.isfinite(g[0])
    assert stats[fields.GRAD_NONFINITE] == 1.0
    assert not stats[fields.CLIPPED]


@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("how", ["error", "scale", "ema"])
def test_where_a_pass_comes_first_nan_leaves_g(how: str, where: str) -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([1.0, math.nan if where == "g" else 2.0])
    r = torch.tensor([-1.0, math.nan if where == "r" else -2.0])
    if how == "error":
        culprit = "grads" if where == "g" else "retain_grads"
        with pytest.raises(
            RuntimeError, match=rf"^{culprit}\[0\]: 1 of 2 elements are NaN or Inf; nothing was changed"
        ):
            rectify_([param], None, rule="sago", retain_grads=[r], error_if_nonfinite=True)
    else:
        kept: Any = RetainEMA([param]) if how == "ema" else RetainGradient([param])
        with kept.collect(2.0 if how == "scale" else None):
            (param * r).sum().backward()
        step = rectify_([param], kept, 1.0, rule="sago")
        assert step.skipped
        assert step.nonfinite
    assert param.grad[0] == 1.0


def test_missing_gradients() -> None:
    """Zeros: SAGO leaves them, and prefer_retain puts r there."""
    x = [torch.tensor([2.0]), torch.tensor([-3.0])]
    for rule, expected in ((SAGO(), None), (SAGO(form="prefer_retain", w_r=0.5), [1.0])):
        params = [nn.Parameter(torch.zeros(1)) for _ in x]
        params[1].grad = torch.tensor([1.0])
        step = rectify_(params, None, rule=rule, retain_grads=x)
        assert (None if params[0].grad is None else params[0].grad.tolist()) == expected
        assert step.norm_ema == pytest.approx(math.sqrt(13.0))
        assert params[1].grad.tolist() == [-3.0 * rule.w_r]


def test_kernels_settle_as_python_does() -> None:
    made = NativePasses(Rows([torch.zeros(1)], None, [torch.zeros(1)], ema_is_current=True))
    for sums in ((-2.0, 4.0, 5.0), (3.0, 4.0, 0.0), (math.nan, 1.0, 1.0), (1.0, math.inf, 1.0)):
        for rest in ((0.0, 0.0, 9.0), (1.0, 0.0, 9.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)):
            for tau in (math.inf, 3.0, 2.9999, 0.5):
                given_ = [*sums, *rest, 1.5, 7.0]
                made.stats.zero_()
                made.stats[: fields.BETA + 1] = torch.tensor(given_, dtype=torch.float64)
                made.finish(StepArgs(1.0, 0.0, tau, SAGO()))
                found = made.stats[fields.ALPHA : fields.GRAD_NONFINITE + 1].numpy()
                np.testing.assert_array_equal(found, settle(SAGO(), given_, tau), err_msg=f"{given_}, tau {tau}")


def test_all_levels_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    g, x = (torch.randn(70003, generator=generator) for _ in range(2))
    best = core.build_info()["vector_level"]
    try:
        for dtype in DTYPES:
            written = []
            for level in core.build_info()["available_levels"]:
                core.use_vector_level(level)
                grad = g.to(dtype)
                gated(NativePasses, SAGO(w_f=0.7), [grad], [x.to(dtype)])
                written.append(grad)
            assert all(torch.equal(a, written[0]) for a in written)
    finally:
        core.use_vector_level(best)
