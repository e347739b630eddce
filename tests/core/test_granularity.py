"""A rule for each group of parameters: against float64, by hand, and the same in Python and in the kernels."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensors import EMULATED
from torch import Tensor, nn

from gru_fast import RetainEMA, RetainGradient, rectify_
from gru_fast.core import stats as fields
from gru_fast.core.backends import native
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Groups, Rows, StepArgs
from gru_fast.core.granularity import grouping, layer_of
from gru_fast.core.load import core
from gru_fast.core.rules import RULES, Dots, Rule, decide_groups, rule_of, settled
from gru_fast.rules import HAMU, PCGrad

Vector = NDArray[np.float64]
NAMES = (
    "embed.weight", "layers.0.q.weight", "layers.0.k.weight", "layers.1.q.weight", "layers.1.k.weight", "norm.bias",
)  # fmt: skip


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(native, "serves", lambda device: False)
        monkeypatch.setattr("gru_fast.core.backends.choice.warn_of_fallback", lambda device: None)
    return str(request.param)


def parameters(grads: Sequence[Tensor | None]) -> list[tuple[str, nn.Parameter]]:
    shapes = [() if g is None else g.shape for g in grads]
    named = [(name, nn.Parameter(torch.zeros(shape))) for name, shape in zip(NAMES, shapes, strict=False)]
    for (_, param), grad in zip(named, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    return named


def after(named: list[tuple[str, nn.Parameter]]) -> list[list[float]]:
    return [[] if param.grad is None else param.grad.flatten().tolist() for _, param in named]


# ---- the groups ------------------------------------------------------------------------------------------------------


def test_groups_by_name() -> None:
    assert grouping("global", NAMES, 6) is None
    tensors = grouping("tensor", NAMES, 6)
    assert tensors is not None
    assert (tensors.of_row, tensors.labels) == ([0, 1, 2, 3, 4, 5], list(NAMES))
    layers = grouping("layer", NAMES, 6)
    assert layers is not None
    assert layers.of_row == [0, 1, 1, 2, 2, 3]
    assert layers.labels == ["embed", "layers.0", "layers.1", "norm"]
    kinds = grouping(lambda name: name.split(".")[-2], NAMES, 6)
    assert kinds is not None
    assert kinds.of_row == [0, 1, 2, 1, 2, 3]
    unnamed = grouping("tensor", None, 2)
    assert unnamed is not None
    assert unnamed.labels == ["0", "1"]
    assert layer_of("transformer.h.11.mlp.c_fc.weight") == "transformer.h.11"
    assert layer_of("model.layers.3.experts.7.w") == "model.layers.3"


def test_what_is_refused() -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"^granularity: expected one of global, tensor, layer, or a function of a"):
        rectify_([param], None, retain_grads=[torch.ones(2)], granularity="module")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^granularity: expected global with sago, which decides element by element$"):
        rectify_([param], None, retain_grads=[torch.ones(2)], granularity="tensor", rule="sago")
    with pytest.raises(ValueError, match=r"^granularity: expected parameters with names for 'layer'; pass"):
        rectify_([param], None, retain_grads=[torch.ones(2)], granularity="layer")
    assert param.grad.tolist() == [1.0, 1.0]


# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("rule", ["gru", "pcgrad", "gdr"])
def test_a_conflict_in_one_tensor_alone(backend: str, rule: str) -> None:
    """<g, r> is 3 in the first tensor and -2 in the second: global rules see no conflict."""
    grads, retain = (
        [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])],
        [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])],
    )
    added = 0.0 if rule == "gru" else 1.0
    named = parameters(grads)
    step = rectify_(named, None, rule=rule, retain_grads=retain)
    assert after(named) == [[3.0 + added, 1.0], [2.0 - added, 4.0]]
    assert not step.conflict
    assert step.groups() == {}
    named = parameters(grads)
    step = rectify_(named, None, rule=rule, retain_grads=retain, granularity="tensor")
    # The second, d = -2, m = 1, u = 20: g' = (0, 4), r' = r + g / 10 = (-0.8, 0.4).
    second = {"gru": [0.0, 4.0], "pcgrad": [-1.0, 4.0], "gdr": [-0.8, 4.4]}[rule]
    found = after(named)
    assert found[0] == [3.0 + added, 1.0]
    assert found[1] == pytest.approx(second)
    assert step.conflict
    groups = step.groups()
    assert [groups[name].conflict for name in NAMES[:2]] == [False, True]
    assert groups[NAMES[1]].dot == -2.0
    assert groups[NAMES[1]].norm_before == pytest.approx(math.sqrt(20.0))
    assert groups[NAMES[0]].norm_ema == 1.0
    assert (groups[NAMES[0]].alpha, groups[NAMES[0]].beta) == (1.0, added)
    assert math.isnan(step.alpha)
    assert math.isnan(step.beta)
    flat = torch.tensor([x for part in found for x in part])
    assert step.norm_after == pytest.approx(float(flat.norm()))
    x = torch.cat(retain)
    assert step.cos_after == pytest.approx(float(flat @ x / flat.norm() / x.norm()), abs=1e-6)


def test_a_missing_gradient_is_made_where_its_group_needs_it(backend: str) -> None:
    grads = [torch.tensor([1.0]), None, torch.tensor([1.0]), None]
    retain = [torch.tensor(v) for v in ([1.0], 5.0, [-1.0], 2.0)]
    named = parameters(grads)
    # Groups: the first two agree, the last two do not: d = -1, m = 5, beta = 1/5.
    rectify_(named, None, rule="gru", retain_grads=retain, granularity=lambda name: NAMES.index(name) // 2)
    assert named[1][1].grad is None
    found = after(named)
    assert found[0] == [1.0]
    assert found[2] == pytest.approx([1.0 - 0.2])
    assert found[3] == pytest.approx([0.4])


@pytest.mark.core
@pytest.mark.parametrize("rule", ["gru", "gdr", "upgrad", "pcgrad"])
def test_a_group_that_float32_squares_cannot_hold(backend: str, rule: str) -> None:
    """|g|^2 = 2e-48 of the first is 0 in float32, beside a second that is ordinary: opposite, nothing is left."""
    grads, retain = [torch.full((2,), 1e-24), torch.ones(2)], [-torch.ones(2), torch.ones(2)]
    named = parameters(grads)
    rectify_(named, None, rule=rule, retain_grads=retain, granularity="tensor")
    first, second = after(named)
    assert first == pytest.approx([-1.0 if rule == "pcgrad" else 0.0] * 2, abs=1e-6)  # one-sided: r stays
    assert second == [{"gru": 1.0, "upgrad": 1.0}.get(rule, 2.0)] * 2


def test_a_square_of_zero_is_no_conflict() -> None:
    for rule in ("gdr", "upgrad", PCGrad(form="sum")):
        made = rule_of(rule).combine(Dots(-1e-24, 1.0, 0.0, True))
        assert math.isfinite(made.alpha)
        assert math.isfinite(made.beta)


@pytest.mark.core
@pytest.mark.parametrize("bad", ["g", "r"])
def test_nan_anywhere_leaves_every_group(backend: str, bad: str) -> None:
    grads, retain = [torch.tensor([2.0]), torch.tensor([2.0])], [torch.tensor([-1.0]), torch.tensor([-1.0])]
    (grads if bad == "g" else retain)[1][0] = math.nan
    named = parameters(grads)
    step = rectify_(named, None, rule="gdr", retain_grads=retain, granularity="tensor")
    assert step.skipped
    assert step.nonfinite
    assert after(named)[0] == [2.0]
    named = parameters(grads)
    step = rectify_(named, RetainEMA(named), 0.5, rule="gru", retain_grads=retain, granularity="tensor")
    assert step.skipped == (bad == "g")  # e has taken in the good one
    assert after(named)[0] == ([2.0] if bad == "g" else [0.0])


@pytest.mark.core
def test_nothing_left_in_all_groups_is_degenerate_and_in_one_it_is_not(backend: str) -> None:
    retain = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0])]
    named = parameters([-r for r in retain])
    step = rectify_(named, None, retain_grads=retain, granularity="tensor")
    assert step.degenerate
    assert after(named) == [[0.0, 0.0], [0.0, 0.0]]
    named = parameters([-retain[0], torch.tensor([1.0, 3.0])])
    step = rectify_(named, None, 1.0, 1.0, retain_grads=retain, granularity="tensor")
    assert not step.degenerate
    assert after(named)[0] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert step.norm_after == pytest.approx(1.0, rel=1e-5)


# ---- against float64 -------------------------------------------------------------------------------------------------


def off(a: Vector, b: Vector) -> Vector:
    return a - (a @ b) / (b @ b) * b


def gru(g: Vector, x: Vector) -> Vector:
    return off(g, x) if g @ x < 0 else g


def gdr(g: Vector, x: Vector) -> Vector:
    return off(g, x) + off(x, g) if g @ x < 0 else g + x


def blur(g: Vector, x: Vector) -> Vector:
    return off(x, g) + g


numbers = st.lists(st.floats(-50, 50, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3), min_size=12, max_size=12)


@pytest.mark.parametrize(("name", "defined"), [("gru", gru), ("gdr", gdr), ("blur", blur)])
@pytest.mark.parametrize("granularity", ["tensor", "layer"])
@given(numbers, numbers, st.one_of(st.none(), st.floats(0.1, 50.0)))
@settings(deadline=None, max_examples=40)
def test_a_step_is_the_rule_in_each_group(
    name: str,
    defined: Callable[[Vector, Vector], Vector],
    granularity: Any,
    g: list[float],
    x: list[float],
    tau: float | None,
) -> None:
    grads, retain = torch.tensor(g).split(2), torch.tensor(x).split(2)
    found = grouping(granularity, NAMES, 6)
    assert found is not None
    expected = np.zeros(12)
    for group in range(len(found.labels)):
        at = [i for row in range(6) if found.of_row[row] == group for i in (2 * row, 2 * row + 1)]
        u, v = np.array(g)[at], np.array(x)[at]
        size = float(np.linalg.norm(u) * np.linalg.norm(v))
        if size == 0.0 or u @ v < -0.999 * size:
            return
        expected[at] = defined(u, v)
    norm = float(np.linalg.norm(expected))
    expected *= min(1.0, (tau or math.inf) / norm) if norm > 0 else 1.0
    named = parameters(grads)
    step = rectify_(named, None, tau=tau, rule=name, retain_grads=list(retain), granularity=granularity)
    written = np.array([value for part in after(named) for value in part])
    scale = max(
        abs(group.alpha) * group.norm_before + abs(group.beta) * group.norm_ema for group in step.groups().values()
    )
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=3e-6 * scale)
    assert step.norm_after == pytest.approx(float(np.linalg.norm(written)), rel=1e-4, abs=1e-5 * scale)
    assert step.clipped == (tau is not None and norm > tau) or abs(norm - (tau or 0.0)) < 1e-3 * norm
    for row in range(6) if granularity == "tensor" and name != "blur" else ():
        part = written[2 * row : 2 * row + 2]
        assert part @ np.array(x[2 * row : 2 * row + 2]) >= -1e-5 * scale * np.linalg.norm(x[2 * row : 2 * row + 2])


def many(dtype: torch.dtype = torch.float32) -> tuple[list[tuple[str, nn.Parameter]], list[Tensor]]:
    """Several chunks, an empty tensor, two dtypes."""
    generator = torch.Generator().manual_seed(3)
    shapes, named, retain = [(150000,), (0,), (7, 11), (70001,), (513,), ()], [], []
    for row, (name, shape) in enumerate(zip(NAMES, shapes, strict=True)):
        r, own = (torch.randn(shape, generator=generator) for _ in range(2))
        kind = torch.float32 if row % 3 == 2 else dtype
        param = nn.Parameter(torch.zeros(shape, dtype=kind))
        param.grad = (own - (0.4 if row % 2 else -0.4) * r).to(kind)
        named.append((name, param))
        retain.append(r.to(kind))
    return named, retain


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeper", ["direct", "ema", "stream"])
def test_over_chunks_dtypes_and_ways_in(keeper: str, dtype: torch.dtype) -> None:
    named, retain = many(dtype)
    grads = [param.grad.double() for _, param in named if param.grad is not None]
    params = [param for _, param in named]
    kept: Any = RetainGradient(named) if keeper == "direct" else RetainEMA(named)
    before = [param.grad for param in params]
    with kept.stream(1.0) if keeper == "stream" else kept.collect():
        sum((p.float() * r.float()).sum() for p, r in zip(params, retain, strict=True)).backward()  # type: ignore[union-attr]
    assert all(a is b for a, b in zip(before, (p.grad for p in params), strict=True))
    step = rectify_(params, kept, 1.0, rule="gru", granularity="layer")
    found = grouping("layer", NAMES, 6)
    assert found is not None
    for group, label in enumerate(found.labels):
        rows = [row for row in range(6) if found.of_row[row] == group]
        d = sum(float((grads[row] * retain[row].double()).sum()) for row in rows)
        m = sum(float(retain[row].double().square().sum()) for row in rows)
        assert step.groups()[label].dot == pytest.approx(d, rel=1e-5, abs=1e-4)
        for row in rows:
            expected = grads[row] - min(d, 0.0) / m * retain[row].double()
            slack = 2e-6 if params[row].dtype == torch.float32 else 2.0**-8
            assert params[row].grad is not None
            error = (params[row].grad.double() - expected).abs()
            assert bool((error <= slack * (expected.abs() + 1.0)).all())
    assert {group.conflict for group in step.groups().values()} == {True, False}


def test_one_group_is_the_whole_and_threads_change_no_bit() -> None:
    results = []
    for threads, granularity in itertools.product((1, 2), ("global", lambda name: 0)):
        named, retain = many()
        torch.set_num_threads(threads)
        try:
            step = rectify_(named, None, tau=3.0, rule=PCGrad(form="sum"), retain_grads=retain, granularity=granularity)  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(1)
        results.append((step.dot, step.norm_after, [param.grad for _, param in named]))
    for dot, norm, grads in results[1:]:
        assert (dot, norm) == (results[0][0], pytest.approx(results[0][1], rel=1e-12))
        for ours, theirs in zip(grads, results[0][2], strict=True):
            assert torch.equal(ours, theirs)  # type: ignore[arg-type]


# ---- Python and the kernels, number for number -----------------------------------------------------------------------

_ORDER = 1e-14 if EMULATED else 0.0  # CUDA's threads add up the groups in another order


@pytest.mark.core
@pytest.mark.parametrize(
    "rule", [*(rule_of(name) for name in RULES if name != "sago"), HAMU(q=2.0), PCGrad(form="mean")], ids=repr
)
def test_kernels_decide_for_groups_as_python_does(rule: Rule) -> None:
    cases = [
        (-2.0, 4.0, 5.0),
        (3.0, 4.0, 5.0),
        (-1e-24, 4.0, 0.0),
        (-1.0, 0.0, 5.0),
        (0.0, 4.0, 0.0),
        (-1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
    ]
    args = [math.inf, 1.0]
    for chosen in [
        *itertools.combinations(cases, 3),
        ((math.nan, 1.0, 1.0), cases[0], cases[1]),
        ((-4.0, 4.0, 4.0),) * 3,
    ]:
        for tau, (refused, vetoed) in itertools.product(args, ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))):
            whole = [*(sum(values) for values in zip(*chosen, strict=True)), refused, vetoed, 3.5]
            one = torch.zeros(3)
            made = NativePasses(Rows([one], None, [torch.ones(3)], ema_is_current=True))
            groups = Groups([0], 3)
            groups.stats[:, fields.GROUP_SUMS] = torch.tensor(chosen, dtype=torch.float64)
            made.stats.zero_()
            made.stats[: fields.WRITTEN + 1] = torch.tensor(whole, dtype=torch.float64)
            made.finish_groups(StepArgs(1.0, 0.0, tau, rule), groups)
            decision, found = decide_groups(rule, whole, chosen, tau)
            outcome = made.stats[fields.ALPHA : fields.GRAD_NONFINITE + 1].numpy()
            compare = functools.partial(np.testing.assert_allclose, rtol=_ORDER, err_msg=f"{chosen}, tau {tau}")
            compare(outcome, settled(decision, whole, tau))
            told = groups.stats[:, fields.GROUP_ALPHA : fields.GROUP_CONFLICT + 1].numpy()
            compare(told, [[g.alpha, g.beta, g.conflict] for g in found])


def test_the_core_checks_groups() -> None:
    table = core.Table([torch.ones(1)], None, [torch.ones(1)])
    scratch, stats = torch.empty(table.scratch_bytes, dtype=torch.uint8), torch.zeros(16, dtype=torch.float64)
    groups = torch.zeros(1, fields.NUM_GROUP_STATS, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^groups: expected one for each of 1 rows, got 2$"):
        table.reduce_groups(stats, scratch, [0, 0], groups, 1)
    with pytest.raises(ValueError, match=r"^groups: expected numbers below 1$"):
        table.reduce_groups(stats, scratch, [1], groups, 1)
    with pytest.raises(ValueError, match=r"^groups: expected at least 18 contiguous float64 on cpu"):
        table.reduce_groups(stats, scratch, [0], groups, 2)
