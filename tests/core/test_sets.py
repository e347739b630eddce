"""Several retain sets: GEM's cone and the removal of a subspace, by their definitions; what is kept of a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from gru_fast import RetainEMA, RetainGradient, measure, rectify_
from gru_fast.core import folding, several
from gru_fast.core import stats as fields
from gru_fast.core.backends import sets
from gru_fast.core.backends.native import NativeSets
from gru_fast.core.backends.reference import ReferencePasses
from gru_fast.core.backends.reference_sets import ReferenceSets
from gru_fast.core.load import core
from gru_fast.core.rules import SeveralRule
from gru_fast.optim import AdamW
from gru_fast.rules import GEM, Subspace

Matrix = NDArray[np.float64]
both_passes = pytest.mark.parametrize("passes", [NativeSets, ReferenceSets])


def split(vector: Matrix, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As two tensors, the second of which starts at an odd place of its memory."""
    whole = torch.tensor(vector).to(dtype)
    return [whole[:1].clone(), torch.cat([torch.zeros(1, dtype=dtype), whole[1:]])[1:]]


def stepped(
    passes: Callable[..., Any], rule: SeveralRule, g: Matrix, xs: Matrix, tau: float = math.inf
) -> tuple[Matrix, Any]:
    """g after a step against the rows of ``xs``, and what it left."""
    grads: list[Tensor | None] = list(split(g))
    made = passes(grads, [split(x) for x in xs])
    made.reduce()
    made.decide(rule, tau)
    made.apply()
    made.finish(tau)
    return torch.cat([t for t in grads if t is not None]).double().numpy(), made.stats


# ---- the coefficients ------------------------------------------------------------------------------------------------

small = st.integers(-3, 3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """g and one to eight vectors of six whole numbers, often dependent, opposite or zero."""
    count = draw(st.integers(1, 8))
    rows = [draw(st.lists(small, min_size=6, max_size=6)) for _ in range(count)]
    for row in range(1, count):
        copied = draw(st.sampled_from([0, 0, 0, 1, -1, 2]))
        if copied:
            rows[row] = [copied * value for value in rows[row - 1]]
    return np.array(draw(st.lists(small, min_size=6, max_size=6)), dtype=float), np.array(rows, dtype=float)


@pytest.mark.core
@both_passes
@given(problems())
@example((np.array([1.0, 0, 0, 0, 0, 0]), np.array([[-1.0, 1, 0, 0, 0, 0], [-1, -1, 0, 0, 0, 0]])))
@settings(deadline=None, max_examples=150)
def test_gem_is_the_nearest_vector_without_a_conflict(
    passes: Callable[..., Any], problem: tuple[Matrix, Matrix]
) -> None:
    """By the conditions that are true of it alone: allowed, moved along constraints that bind, and never pulled."""
    g, xs = problem
    out, stats = stepped(passes, GEM(), g, xs)
    sizes = np.linalg.norm(xs, axis=1)
    noise = 1e-5 * max(float(np.linalg.norm(g)), 1e-3)
    betas = np.array(stats[fields.SET_BETAS].tolist()[: len(xs)]) * float(stats[fields.RESCALE])
    if not stats[fields.DEGENERATE]:
        assert np.linalg.norm(out - g - betas @ xs) <= noise
    assert (xs @ out >= -noise * np.maximum(sizes, 1.0)).all()
    assert (betas >= 0.0).all()
    assert np.abs(betas * (xs @ out)).max() <= noise * max(float(np.linalg.norm(g)), 1.0)
    assert bool(stats[fields.CONFLICT]) == bool((xs @ g < 0).any())
    if not (xs @ g < 0).any():
        np.testing.assert_array_equal(out, g)


@pytest.mark.core
@both_passes
@given(problems(), st.sampled_from([0.0, 0.5]))
@settings(deadline=None, max_examples=100)
def test_subspace_takes_all_of_a_component(
    passes: Callable[..., Any], problem: tuple[Matrix, Matrix], w_r: float
) -> None:
    g, xs = problem
    out, _ = stepped(passes, Subspace(w_r=w_r), g, xs)
    inside = xs.T @ np.linalg.lstsq(xs.T, g, rcond=1e-8)[0]
    scale = float(np.linalg.norm(g) + w_r * np.linalg.norm(xs)) or 1.0
    np.testing.assert_allclose(out, g - inside + w_r * xs.mean(0), atol=3e-6 * scale)


def dots_of(g: Matrix, xs: Matrix) -> Any:
    from gru_fast.core.rules import SetDots

    return SetDots((xs @ g).tolist(), (xs @ xs.T).tolist(), float(g @ g))


@given(
    problems(), st.sampled_from([GEM(), GEM(margin=0.3), Subspace(), Subspace(w_r=0.5)]), st.sampled_from([1.0, 9e9])
)
@settings(deadline=None, max_examples=150)
def test_python_decides_as_the_kernels_do(problem: tuple[Matrix, Matrix], rule: SeveralRule, tau: float) -> None:
    g, xs = problem
    tables = []
    for passes in (NativeSets, ReferenceSets):
        made = passes(list(split(g)), [split(x) for x in xs])
        made.reduce()
        sums = made.stats.clone()
        made.decide(rule, tau)
        tables.append((sums, made.stats))
    np.testing.assert_array_equal(tables[0][0], tables[1][0])  # whole numbers: no order of adding matters
    np.testing.assert_allclose(tables[0][1], tables[1][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scales", [(1e-15, 1e15), (1e18, 1e-18), (1e-30, 1.0)])
@both_passes
def test_vectors_of_any_size(passes: Callable[..., Any], scales: tuple[float, float]) -> None:
    g = np.array([-1.0, -2.0, 0.5, 0.0])
    xs = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, -1.0]])
    plain, _ = stepped(passes, GEM(), g, xs)
    scaled, _ = stepped(passes, GEM(), g, xs * np.array(scales)[:, None])
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)


def test_a_margin_pulls_towards_every_set_where_one_conflicts() -> None:
    """Their quadratic program, min 1/2 v'Gv + h'v with v >= margin, by trying a grid."""
    g, xs = np.array([-1.0, 0.5]), np.array([[1.0, 0.0], [0.6, 0.8]])
    betas = GEM(margin=0.25).spread(dots_of(g, xs)).betas
    gram, h = xs @ xs.T, xs @ g
    grid = [np.array(v) for v in itertools.product(np.linspace(0.25, 2.0, 141), repeat=2)]
    best = min(grid, key=lambda v: float(0.5 * v @ gram @ v + h @ v))
    np.testing.assert_allclose(betas, best, atol=0.013)
    assert GEM(margin=0.25).spread(dots_of(-g, np.array([[1.0, 0.0], [1.0, 0.0]]))).betas == [0.0, 0.0]


@both_passes
def test_two_that_are_one_are_a_gem_and_two_that_oppose_leave_neither(passes: Callable[..., Any]) -> None:
    g, x = np.array([-1.0, 2.0, 0.5]), np.array([2.0, 0.5, 0.0])
    alone, _ = stepped(passes, GEM(), g, np.array([x]))
    twice, _ = stepped(passes, GEM(), g, np.array([x, x]))
    np.testing.assert_allclose(alone, g - (g @ x) / (x @ x) * x, rtol=1e-6)
    np.testing.assert_allclose(twice, alone, rtol=1e-6)
    opposed, _ = stepped(passes, GEM(), g, np.array([x, -x]))
    np.testing.assert_allclose(opposed @ x, 0.0, atol=1e-6)


@both_passes
def test_nothing_left_is_zero_and_said(passes: Callable[..., Any]) -> None:
    x = np.array([[0.3, 0.1, 0.0, 0.7], [0.0, 0.9, 0.2, 0.1]])
    out, stats = stepped(passes, GEM(), -x[0] - 0.3 * x[1], x)
    assert not out.any()
    assert stats[fields.DEGENERATE] == 1.0


@both_passes
@pytest.mark.parametrize("tau", [0.1, 1.0, 50.0])
def test_it_is_clipped(passes: Callable[..., Any], tau: float) -> None:
    g, xs = np.array([-1.0, 2.0, 0.5, 3.0]), np.array([[2.0, 0.5, 0.0, 1.0], [1.0, -3.0, 0.0, 0.0]])
    out, stats = stepped(passes, GEM(), g, xs, tau)
    free, _ = stepped(passes, GEM(), g, xs)
    np.testing.assert_allclose(out, free * min(1.0, tau / float(np.linalg.norm(free))), rtol=2e-6, atol=1e-7)
    assert float(stats[fields.OUT_NORM_SQ]) == pytest.approx(float(out @ out), rel=1e-5)
    assert bool(stats[fields.CLIPPED]) == (tau < 3.0)


# ---- the passes ------------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensors(
    dtype: torch.dtype, count: int, numels: list[int], device: torch.device | str = "cpu"
) -> tuple[list[Tensor | None], list[list[Tensor]]]:
    """g, the last missing, and vectors, every second one float32; some start in the middle of a word."""
    generator = torch.Generator().manual_seed(3)

    def normal(numel: int, of: torch.dtype, offset: int) -> Tensor:
        return torch.randn(numel + offset, generator=generator).to(device, of)[offset:]

    vectors = [
        [normal(numel, torch.float32 if j % 2 else dtype, (row + j) % 3) for row, numel in enumerate(numels)]
        for j in range(count)
    ]
    grads: list[Tensor | None] = [
        (normal(numel, torch.float32, 0) - sum(x[row].float() for x in vectors)).to(dtype)
        for row, numel in enumerate(numels)
    ]
    grads[-1] = None
    return grads, vectors


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_kernels_do_what_the_reference_does(device: torch.device, dtype: torch.dtype, count: int) -> None:
    numels = [0, 1, 31, 1025, 0, 70001, 7, 300]
    left = []
    for passes, place in ((NativeSets, device), (ReferenceSets, "cpu")):
        grads, vectors = tensors(dtype, count, numels, place)
        made = passes(grads, vectors)
        made.reduce()
        sums = made.stats.clone()
        made.decide(GEM(), 2.0)
        made.apply()
        made.finish(2.0)
        left.append((sums.cpu(), made.stats.cpu(), grads))
    (sums, stats, grads), (expected_sums, expected_stats, expected) = left
    scale = float(expected_sums[fields.SET_DOTS.start : fields.SET_GRAM.stop].abs().max())
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(stats, expected_stats, rtol=1e-6, atol=1e-12 * scale)
    for row, (ours, theirs) in enumerate(zip(grads, expected, strict=True)):
        if ours is not None and theirs is not None:
            error = (ours.double().cpu() - theirs.double()).abs().max() if ours.numel() else 0.0
            assert error <= 2 * torch.finfo(dtype).eps * 0.2, f"row {row}"


@pytest.mark.core
def test_two_16_bit_dtypes_in_a_row_without_a_gradient_are_refused() -> None:
    """Else the one would be read as the other."""
    row = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.float16)]
    with pytest.raises(TypeError, match=r"sets\[2\]\[0\].*: expected float32 or the 16-bit dtype of the sets before"):
        NativeSets([None], [[x] for x in row])
    NativeSets([None], [[row[0]], [row[1]], [row[1].clone()]])


def test_a_graph_replays_a_step_against_two_sets(device: torch.device) -> None:
    """Nothing of it asks the host; on the CPU the same steps are made one by one."""

    def step(params: list[nn.Parameter], ema: RetainEMA, retain: list[Tensor], g: list[Tensor]) -> None:
        for j, r in enumerate(retain):
            with ema.collect(set=j):
                params[0].grad = r.clone()
        params[0].grad = g[0].clone()
        rectify_(params, ema, 0.3, 1.0, rule="gem")

    generator = torch.Generator().manual_seed(0)
    retain = [torch.randn(3000, generator=generator) for _ in range(2)]
    g = [0.1 * torch.randn(3000, generator=generator) - retain[0]]
    found = []
    for place in ("cpu", device):
        params = [nn.Parameter(torch.zeros(3000, device=place))]
        ema = RetainEMA(params, sets=2)
        given = [r.to(place) for r in retain], [t.to(place) for t in g]
        step(params, ema, *given)
        if params[0].is_cuda:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(params, ema, *given)
            graph.replay()
        else:
            step(params, ema, *given)
        assert params[0].grad is not None
        found.append((params[0].grad.cpu(), [e.cpu() for e in ema.tensors]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.core
def test_every_vector_level_and_number_of_threads(vector_level: str, thread_count: Callable[[int], None]) -> None:
    found = []
    for threads in (1, 2):
        thread_count(threads)
        grads, vectors = tensors(torch.bfloat16, 4, [200001, 33, 5])
        made = NativeSets(grads, vectors)
        for step in (made.reduce, lambda m=made: m.decide(GEM(), 1.0), made.apply, lambda m=made: m.finish(1.0)):
            step()
        found.append((made.stats, grads[0]))
    assert torch.equal(found[0][0][: fields.SET_MEASURES], found[1][0][: fields.SET_MEASURES])
    assert torch.equal(found[0][1], found[1][1])


@both_passes
def test_what_does_not_fit_is_refused_by_name(passes: Callable[..., Any]) -> None:
    a, b = torch.ones(2), torch.ones(3)
    with pytest.raises(ValueError, match=r"^sets: expected 1 to 8 lists, got 9$"):
        passes([a], [[a.clone()] for _ in range(9)])
    with pytest.raises(ValueError, match=r"^sets\[1\]: expected 1 entries, one per parameter, got 2$"):
        passes([a], [[a.clone()], [a.clone(), a.clone()]])
    with pytest.raises(ValueError, match=r'^sets\[1\]\[0\] "w": expected shape \(2,?\) as its gradient, got \(3,?\)'):
        passes([a], [[a.clone()], [b]], ["w"])
    with pytest.raises(TypeError, match=r"^sets\[0\]\[0\]: expected float32.*, got float16"):
        passes([a.bfloat16()], [[a.half()]])


# ---- through the whole road ------------------------------------------------------------------------------------------


class Model:
    """Parameters of given dtypes, whose gradients are put in by hand."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.params = [nn.Parameter(torch.zeros(5, 3, dtype=dtype)), nn.Parameter(torch.zeros(7, dtype=dtype))]
        self.generator = torch.Generator().manual_seed(1)

    def gradient(self) -> list[Tensor]:
        return [torch.randn(p.shape, generator=self.generator).to(p.dtype) for p in self.params]

    def put(self, gradient: list[Tensor]) -> None:
        for param, g in zip(self.params, gradient, strict=True):
            param.grad = g.clone()

    def backward(self, gradient: list[Tensor]) -> None:
        sum((p * g).sum() for p, g in zip(self.params, gradient, strict=True)).backward()

    def flat(self, gradient: list[Tensor] | None = None) -> Tensor:
        found = [p.grad for p in self.params] if gradient is None else gradient
        return torch.cat([t.flatten().double() for t in found])


def against(*retain: list[Tensor]) -> list[Tensor]:
    """The opposite of their sum."""
    return [-torch.stack(parts).sum(0) for parts in zip(*retain, strict=True)]


@pytest.mark.parametrize("how", ["collect", "stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_set_has_the_average_it_would_have_alone(how: str, dtype: torch.dtype) -> None:
    model, steps = Model(dtype), 3
    ema = RetainEMA(model.params, dtype, seed=4, sets=2)
    alone = [RetainEMA(model.params, dtype, seed=4 + j) for j in range(2)]
    for _ in range(steps):
        retain = [model.gradient(), model.gradient()]
        for j, one in enumerate(alone):
            with one.collect() if how == "collect" else one.stream(0.3):
                model.backward(retain[j])
            model.put(model.gradient())
            rectify_(model.params, one, 0.3)
        for j in (1, 0):
            block = ema.collect(set=j) if how == "collect" else ema.stream(0.3, set=j)
            with block:
                model.backward(retain[j])
        model.put(against(*retain))
        step = rectify_(model.params, ema, 0.3, rule="gem")
    wanted = [e for one in alone for e in one.tensors]
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors, wanted, strict=True))
    assert [entry.conflict for entry in step.sets()] == [True, True]
    found = model.flat()
    for entry, one in zip(step.sets(), alone, strict=True):
        x = model.flat(one.tensors)
        cos = float(found @ x / (found.norm() * x.norm()))
        assert cos == pytest.approx(entry.cos_after, abs=0.01 if dtype == torch.bfloat16 else 1e-6)
        assert cos >= -(0.01 if dtype == torch.bfloat16 else 1e-6)
    assert step.conflict
    assert math.isnan(step.beta)
    assert ema.step == steps


def test_streamed_gradients_are_taken_in_once_without_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second set one parameter has no gradient in the last step, and its e decays."""
    found = []
    for how in ("collect", "stream", "without kernels"):
        if how == "without kernels":
            monkeypatch.setattr(several, "passes_for", lambda _, rows: ReferencePasses(rows))
            monkeypatch.setattr(folding, "passes_for", lambda _, rows: ReferencePasses(rows))
            monkeypatch.setattr(sets, "NativeSets", ReferenceSets)
        model = Model()
        ema = RetainEMA(model.params, sets=2)
        for step in range(3):
            for j in range(2):
                with ema.collect(set=j) if how == "collect" else ema.stream(0.5, set=j):
                    left = [(p * g).sum() for p, g in zip(model.params, model.gradient(), strict=True)]
                    (left[0] if (step, j) == (2, 1) else left[0] + left[1]).backward()
            model.put(model.gradient())
            rectify_(model.params, ema, 0.5, rule="gem")
        found.append([*ema.tensors, model.flat()])
    for others in found[1:]:
        for ours, theirs in zip(found[0], others, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, check_dtype=False)


def test_a_set_without_gradients_stays_as_it_is() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    first = model.gradient()
    with ema.collect(set=1):
        model.backward(first)
    model.put(against(first))
    rectify_(model.params, ema, 0.5, rule="gem")
    with ema.collect(set=0):
        model.backward(model.gradient())
    model.put(against(first))
    rectify_(model.params, ema, 0.5, rule="gem")
    assert all(torch.equal(e, 0.5 * r) for e, r in zip(ema.tensors[2:], first, strict=True))
    assert float(model.flat() @ model.flat(first)) >= -1e-5


def test_nan_in_one_set_or_in_g() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    good, bad = model.gradient(), model.gradient()
    bad[1][2] = math.nan
    for j, r in enumerate((good, bad)):
        with ema.collect(set=j):
            model.backward(r)
    model.put(against(good, [r.nan_to_num(0.0) for r in bad]))
    step = rectify_(model.params, ema, 1.0, rule="gem")
    assert step.retain_nonfinite
    assert not step.skipped  # gem goes by what e could take in
    assert torch.cat([e.flatten() for e in ema.tensors]).isfinite().all()
    g = model.gradient()
    g[0][0, 0] = math.inf
    model.put(g)
    step = rectify_(model.params, ema, 1.0, rule="subspace")
    assert step.grad_nonfinite
    assert step.skipped
    assert math.isnan(step.cos_after)
    assert all(math.isnan(entry.cos_after) for entry in step.sets())
    assert torch.equal(model.flat(), model.flat(g))


@pytest.mark.parametrize("how", ["scale", "error"])
def test_all_or_nothing_is_over_all_sets(how: str) -> None:
    model = Model()
    ema = RetainEMA([("a", model.params[0]), ("b", model.params[1])], sets=2)
    bad, good = model.gradient(), model.gradient()
    bad[1][2] = math.inf
    for j, r in enumerate((good, bad)):
        with ema.collect(2.0 if how == "scale" else None, set=j):
            model.backward(r)
    g = model.gradient()
    model.put(g)
    if how == "scale":
        step = rectify_(model.params, ema, 1.0, rule="gem")
        assert step.skipped
        assert math.isnan(step.dot)
    else:
        with pytest.raises(RuntimeError, match=r'^retain_grads of set 1\[1\] "b": 1 of 7 elements are NaN or Inf'):
            rectify_(model.params, ema, 1.0, rule="gem", error_if_nonfinite=True)
    assert not any(e.any() for e in ema.tensors)
    assert torch.equal(model.flat(), model.flat(g))
    assert not ema.pending.is_begun


def test_a_loss_scale_and_a_share_are_those_of_each_set() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    retain = [model.gradient(), model.gradient()]
    for j, scale in enumerate((4.0, 1.0)):
        with ema.collect(scale, share=0.5 * j, set=j):
            model.backward([scale * r for r in retain[j]])
    g = model.gradient()
    model.put(g)
    step = rectify_(model.params, ema, 1.0, rule=GEM())
    assert all(torch.equal(e, r) for e, r in zip(ema.tensors, [*retain[0], *retain[1]], strict=True))
    whole = model.flat(g) + 0.5 * model.flat(retain[1])
    for entry, r in zip(step.sets(), retain, strict=True):
        assert entry.dot == pytest.approx(float(whole @ model.flat(r)), rel=1e-6)


def test_measure_looks_and_leaves_g() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    retain = [model.gradient(), model.gradient()]
    for j, r in enumerate(retain):
        with ema.collect(set=j):
            model.backward(r)
    g = against(*retain)
    model.put(g)
    found = measure(model.params, ema, 1.0)
    assert torch.equal(model.flat(), model.flat(g))
    assert found.conflict
    assert found.norm_after == found.norm_before
    mean = 0.5 * (model.flat(retain[0]) + model.flat(retain[1]))
    assert found.dot == pytest.approx(float(mean @ model.flat(g)), rel=1e-6)
    assert found.norm_ema == pytest.approx(float(mean.norm()), rel=1e-6)
    assert found.cos_after == found.cos
    assert [entry.cos_after for entry in found.sets()] == [entry.cos for entry in found.sets()]


def test_a_missing_gradient_is_made_where_a_set_gives_it_a_value() -> None:
    a, b, never = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    ema = RetainEMA([a, b, never], sets=2)
    with ema.collect(set=1):
        (a.sum() + b.sum()).backward()
    a.grad = torch.tensor([-1.0, 0.0])
    rectify_([a, b, never], ema, 1.0, rule="gem")
    assert a.grad.tolist() == [-0.75, 0.25]
    assert b.grad is not None
    assert b.grad.tolist() == [0.25, 0.25]
    assert never.grad is None


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_a_kept_gradient_is_not_gone_against() -> None:
    model = Model()
    ema = RetainEMA(model.params)
    earlier, retain = model.gradient(), model.gradient()
    model.put(retain)
    with ema.keep():
        model.backward(earlier)
    assert torch.equal(model.flat(), model.flat(retain))  # .grad is what it was
    assert ema.has_several
    for _ in range(2):
        with ema.collect():
            model.backward(retain)
        model.put(against(retain, earlier))
        step = rectify_(model.params, ema, 0.5, rule="subspace")
        assert abs(float(model.flat() @ model.flat(earlier))) <= 1e-5
        assert len(step.sets()) == 2
    assert torch.equal(model.flat(ema.kept[0]), model.flat(earlier))
    ema.drop_kept()
    assert not ema.has_several


def test_kept_gradients_have_their_limits() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=7)
    with pytest.raises(ValueError, match=r"^keep: expected a gradient of finite numbers, got none$"), ema.keep():
        pass
    with ema.keep():
        model.backward(model.gradient())
    full = pytest.raises(ValueError, match=r"^keep: expected at most 8 sets and kept gradients together, got 7 and 2")
    with full, ema.keep():
        pass
    with ema.collect():
        model.backward(model.gradient())
    with pytest.raises(RuntimeError, match=r"^drop_kept: this step's retain gradients are still pending"):
        ema.drop_kept()


# ---- state -----------------------------------------------------------------------------------------------------------


def run_of(ema: RetainEMA, model: Model, steps: int) -> Tensor:
    for _ in range(steps):
        for j in range(ema.sets):
            with ema.collect(set=j):
                model.backward(model.gradient())
        model.put(model.gradient())
        rectify_(model.params, ema, 0.3, 1.0, rule="gem")
    return model.flat()


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    whole = Model(torch.bfloat16)
    ema = RetainEMA(whole.params, torch.bfloat16, seed=9, sets=2)
    with ema.keep():
        whole.backward(whole.gradient())
    run_of(ema, whole, 2)
    state = {k: [t.clone() for t in v] if k == "ema" else v for k, v in ema.state_dict().items()}
    expected = run_of(ema, whole, 2)
    later = Model(torch.bfloat16)
    for _ in range(1 + 2 * 3):
        later.gradient()
    resumed = RetainEMA(later.params, torch.bfloat16, sets=2)
    resumed.load_state_dict(state)
    assert torch.equal(run_of(resumed, later, 2), expected)
    assert all(torch.equal(a, b) for a, b in zip(resumed.tensors, ema.tensors, strict=True))
    assert resumed.step == 4
    assert repr(resumed) == "RetainEMA(2 parameters, 22 elements, bfloat16, 2 sets, 1 kept, 4 steps)"
    with pytest.raises(ValueError, match=r"^state_dict: expected 3 retain sets, got 2; RetainEMA\(\.\.\., sets="):
        RetainEMA(later.params, torch.bfloat16, sets=3).load_state_dict(state)
    ema.reset()
    assert not ema.kept
    assert not any(e.any() for e in ema.tensors)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process has nobody to meet
@pytest.mark.parametrize(
    ("sets", "kept", "said"),
    [
        (2, 2, None),
        (2, 1, r"^state_dict: expected 2 kept gradients, got 1; "),
        (2, 0, r"^state_dict: expected some kept gradients, got 0; .* keep\(\) as many before it loads$"),
        (1, 2, r"^state_dict: expected 1 retain sets, got 2; "),
    ],
)
def test_a_distributed_checkpoint_leaves_nothing_behind_unsaid(
    tmp_path: Path, sets: int, kept: int, said: str | None
) -> None:
    """It fills in what there is room for, and says nothing of the rest."""

    def made(sets: int, kept: int) -> RetainEMA:
        ema = RetainEMA(model.params, sets=sets)
        for _ in range(kept):
            with ema.keep():
                model.backward(model.gradient())
        return ema

    model = Model()
    saved = made(2, 2)
    run_of(saved, model, 1)
    dcp.save({"ema": saved}, checkpoint_id=tmp_path)
    loaded = made(sets, kept)
    if said is None:
        dcp.load({"ema": loaded}, checkpoint_id=tmp_path)
        ours, theirs = ([*e.tensors, *(t for gradient in e.kept for t in gradient)] for e in (loaded, saved))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    else:
        with pytest.raises(ValueError, match=said):
            dcp.load({"ema": loaded}, checkpoint_id=tmp_path)


def test_kept_gradients_of_a_model_in_sixteen_bits_go_with_one_in_thirty_two() -> None:
    half, model = Model(torch.bfloat16), Model()
    saved = RetainEMA(half.params)
    with saved.keep():
        half.backward(half.gradient())
    ema = RetainEMA(model.params)
    ema.load_state_dict(saved.state_dict())
    assert [kept.dtype for kept in ema.kept[0]] == [torch.float32] * 2
    assert torch.equal(model.flat(ema.kept[0]), half.flat(saved.kept[0]))
    model.put([-r for r in ema.kept[0]])
    assert rectify_(model.params, ema, 0.5, rule="gem").degenerate


# ---- what does not go together ---------------------------------------------------------------------------------------


def bad_calls() -> Iterator[tuple[Callable[[Any, list[Any]], Any], type[Exception], str]]:
    error: type[Exception] = ValueError
    yield lambda ema, p: rectify_(p, ema, 0.5), error, r"^rule: expected gem or subspace with 2 retain sets, got gru"
    yield (
        lambda ema, p: rectify_(p, ema, 0.5, rule="gem", granularity="tensor"),
        error,
        r"^granularity: expected global with several retain sets, got 'tensor'",
    )
    yield (
        lambda ema, p: rectify_(p, ema, 0.5, rule="gem", retain_grads=[None] * 2),
        error,
        r"^retain_grads: expected None with several retain sets",
    )
    yield lambda ema, p: ema.collect(set=2).__enter__(), error, r"^set: expected a whole number from 0 to 1, got 2"
    yield lambda ema, p: AdamW(p, ema=ema, gamma=0.5), error, r"^ema: expected a RetainEMA of one set"
    yield lambda ema, p: RetainEMA(p, sets=9), error, r"^sets: expected a whole number from 1 to 8, got 9"
    yield lambda ema, p: RetainEMA(p).collect(set=1).__enter__(), error, r"^set: expected 0, since there is one set"


@pytest.mark.parametrize(("call", "error", "message"), list(bad_calls()))
def test_it_is_refused_in_a_line(call: Callable[[Any, list[Any]], Any], error: type[Exception], message: str) -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    with pytest.raises(error, match=message):
        call(ema, model.params)


def test_one_block_at_a_time() -> None:
    model = Model()
    ema = RetainEMA(model.params, sets=2)
    with ema.collect(set=0), pytest.raises(RuntimeError, match=r"inside collect\(\)"), ema.collect(set=1):
        pass


def test_without_an_average_they_are_rules_of_one_vector() -> None:
    model = Model()
    retain = RetainGradient(model.params)
    r = model.gradient()
    with retain.collect():
        model.backward(r)
    model.put(against(r))
    assert rectify_(model.params, retain, rule="gem").degenerate


def test_the_stub_says_how_many_there_can_be() -> None:
    assert core.MAX_VECTORS == 8
    assert core.NUM_SET_STATS == fields.SET_MEASURES + 1
