"""Task vectors and models between two: both backends against float64, values by hand, errors, what never changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_within
from tensors import BF16, DTYPES, F16, F32, bits_of, flat64, shifted
from torch import Tensor

from gru_fast.core import vectors
from gru_fast.core.backends import native
from gru_fast.core.backends.native import NativeBlend, NativeUnit
from gru_fast.core.backends.reference_vectors import ReferenceBlend, ReferenceUnit
from gru_fast.core.vectors import TaskVectorStep, accumulate_task_vector_, interpolate_, subtract_

pytestmark = pytest.mark.core

# Empty first, in the middle and last; one element; odd; beyond a chunk of 65,536.
SHAPES: tuple[tuple[int, ...], ...] = ((0,), (1,), (7,), (33, 129), (0, 4), (), (3, 5), (65537,), (2, 0))
# dtypes of parameters, of the total gradient, of the unit's own
KINDS = [(F32, F32, F32), *((p, t, o) for p in (BF16, F16) for t, o in itertools.product((p, F32), repeat=2))]
HALF_PLACE = {F32: 2.0**-24, BF16: 2.0**-8, F16: 2.0**-11}  # of the significands of 24, 8 and 11 bits


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which classes the public functions use."""
    if request.param == "reference":
        monkeypatch.setattr(native, "NativeUnit", ReferenceUnit)
        monkeypatch.setattr(native, "NativeBlend", ReferenceBlend)
    elif not native.serves(device):
        pytest.skip(f"this build has no kernels for {device.type}")
    return str(request.param)


@dataclass
class Unit:
    """The tensors of one unit."""

    params: list[Tensor]
    origin: list[Tensor]
    mean: list[Tensor]
    total: list[Tensor | None]
    own: list[Tensor | None]

    def run(self, **settings: Any) -> TaskVectorStep:
        return accumulate_task_vector_(self.params, self.origin, self.mean, total=self.total, own=self.own, **settings)

    def expected(self, weight: float = 1.0, normalize: bool = True, sign: float = 1.0) -> np.ndarray[Any, Any]:
        """The mean afterwards, in float64, straight from the formula; ``sign`` -1 is the paper's Eq. 11."""
        task = flat64(self.params, self.params) - flat64(self.origin, self.params)
        rest = flat64(self.total, self.params) - flat64(self.own, self.params)
        mean = flat64(self.mean, self.params)
        if rest.any():
            task = task + sign * max(-sign * float(task @ rest), 0.0) / float(rest @ rest) * rest
        return mean + weight * task / (float(np.linalg.norm(task)) if normalize else 1.0)


def make_unit(
    kind: tuple[torch.dtype, ...] | Sequence[tuple[torch.dtype, ...]],
    *,
    conflict: bool = True,
    seed: int = 0,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    device: torch.device | str = "cpu",
    opposite: float = 0.0,
) -> Unit:
    """Normal values, most rows misaligned. ``opposite``: how much of T is exactly along -r; the rest is noise."""
    kinds = (
        [kind] * len(shapes) if isinstance(kind[0], torch.dtype) else [kind[i % len(kind)] for i in range(len(shapes))]
    )
    generator = torch.Generator().manual_seed(seed)
    unit = Unit([], [], [], [], [])
    for row, ((param, total, own), shape) in enumerate(zip(kinds, shapes, strict=True)):  # type: ignore[misc]
        a, b, noise, start, mean = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5))
        origin = start.to(param)
        along = (-1.0 if conflict else 1.0) * (a - b)
        task = 0.1 * (opposite * along + (1.0 - opposite) * (along + noise))
        made = [(origin.double() + task).to(param), origin, (0.5 * mean).float(), a.to(total), b.to(own)]
        lists = (unit.params, unit.origin, unit.mean, unit.total, unit.own)
        for k, (to, tensor) in enumerate(zip(lists, made, strict=True)):
            to.append(shifted(tensor.to(device), (row * (k + 1)) % 4))
    return unit


def allowed_of(unit: Unit, expected: np.ndarray[Any, Any], weight: float = 1.0) -> np.ndarray[Any, Any]:
    """float32 differences (an ulp of the larger operand), coefficients good to 3e-6, a float32 sum."""
    params, origin = flat64(unit.params, unit.params), flat64(unit.origin, unit.params)
    rest = np.abs(flat64(unit.total, unit.params)) + np.abs(flat64(unit.own, unit.params))
    task = params - origin
    scale = abs(weight) / np.linalg.norm(task) * 4.0  # a projection leaves no less than a quarter here
    beta = np.linalg.norm(task) / max(float(np.linalg.norm(rest)), 1e-300) * 4.0
    rounding = 2.0**-24 * (np.abs(params) + np.abs(origin) + beta * rest)
    return scale * (rounding + 3e-6 * (np.abs(task) + beta * rest)) + 2.0**-23 * np.abs(expected) + 1e-12


# ---- one unit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(d).removeprefix("torch.") for d in kind))
def test_against_float64(backend: str, device: torch.device, kind: tuple[torch.dtype, ...], conflict: bool) -> None:
    unit = make_unit(kind, conflict=conflict, device=device)
    expected = unit.expected(weight=0.5)
    allowed = allowed_of(unit, expected, 0.5)
    other = unit.expected(weight=0.5, sign=-1.0)
    origin = [bits_of(t) for t in unit.origin]
    gradients = [bits_of(t) for t in [*unit.total, *unit.own] if t is not None]
    step = unit.run(weight=0.5)
    assert (step.projected, step.skipped) == (conflict, False)
    assert_within(flat64(unit.mean, unit.params), expected, allowed, "mean")
    assert np.abs(expected - other).max() > 100 * allowed.max()  # the other sign would be seen
    assert [bits_of(t) for t in unit.params] == [bits_of(t) for t in unit.origin] == origin
    assert [bits_of(t) for t in [*unit.total, *unit.own] if t is not None] == gradients


def test_kinds_mixed_in_one_list(backend: str, device: torch.device) -> None:
    unit = make_unit(KINDS, device=device, shapes=[(41 + row,) for row in range(2 * len(KINDS))])
    expected = unit.expected()
    allowed = allowed_of(unit, expected)
    unit.run()
    assert_within(flat64(unit.mean, unit.params), expected, allowed, "mean")


def test_statistics(backend: str, device: torch.device) -> None:
    unit = make_unit((F32, F32, F32), device=device)
    task = flat64(unit.params, unit.params) - flat64(unit.origin, unit.params)
    rest = flat64(unit.total, unit.params) - flat64(unit.own, unit.params)
    step = unit.run()
    norms = float(np.linalg.norm(task)), float(np.linalg.norm(rest))
    cos = float(task @ rest) / norms[0] / norms[1]
    assert (step.norm, step.norm_rest) == pytest.approx(norms, rel=1e-6)
    assert step.cos == pytest.approx(cos, abs=2e-6)
    assert step.norm_rectified == pytest.approx(norms[0] * math.sqrt(1 - cos**2), rel=1e-5)
    assert repr(step).endswith("projected)")


def test_by_hand(backend: str, device: torch.device) -> None:
    """T = (3, 4); r = (5, 0) - (10, 0) = (-5, 0): <T, r> = -15, T~ = (3, 4) + 15/25 (-5, 0) = (0, 4)."""
    w, mean = torch.tensor([4.0, 6.0], device=device), torch.ones(2, device=device)
    lists = {
        "total": [torch.tensor([5.0, 0.0], device=device)],
        "own": [torch.tensor([10.0, 0.0], device=device)],
    }
    step = accumulate_task_vector_([w], [torch.tensor([1.0, 2.0], device=device)], [mean], weight=0.5, **lists)
    assert (step.norm, step.norm_rest, step.norm_rectified, step.cos) == pytest.approx((5.0, 5.0, 4.0, -0.6))
    assert mean.tolist() == pytest.approx([1.0, 1.5])
    assert w.tolist() == [1.0, 2.0]


def test_without_normalising_and_without_restoring(backend: str, device: torch.device) -> None:
    w, mean = torch.tensor([4.0, 6.0], device=device), torch.zeros(2, device=device)
    origin = [torch.tensor([1.0, 2.0], device=device)]
    step = accumulate_task_vector_([w], origin, [mean], weight=2.0, normalize=False, restore=False)
    assert mean.tolist() == [6.0, 8.0]
    assert w.tolist() == [4.0, 6.0]
    assert (step.norm_rest, step.projected, step.norm_rectified) == (0.0, False, pytest.approx(5.0))
    assert math.isnan(step.cos)


@pytest.mark.parametrize("missing", ["total", "own", "both", "some of each"])
def test_missing_gradients_are_zeros(backend: str, device: torch.device, missing: str) -> None:
    unit = make_unit((BF16, F32, BF16), device=device)
    for row in range(len(unit.params)):
        if missing in ("total", "both") or (missing == "some of each" and row % 3 == 0):
            unit.total[row] = None
        if missing in ("own", "both") or (missing == "some of each" and row % 2 == 0):
            unit.own[row] = None
    expected = unit.expected()
    allowed = allowed_of(unit, expected)
    unit.run()
    assert_within(flat64(unit.mean, unit.params), expected, allowed, "mean")


def test_nearly_opposite(backend: str, device: torch.device) -> None:
    """The norm has cancelled in the sums (cos = -1 + 1e-7 or so): what is added has norm 1 all the same."""
    unit = make_unit((F32, F32, F32), device=device, opposite=0.9997)
    for mean in unit.mean:
        mean.zero_()
    step = unit.run()
    assert step.cos < -0.999999
    assert not step.skipped
    norm = float(np.linalg.norm(flat64(unit.mean, unit.params)))
    assert norm == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("what", ["T is 0", "T is opposite to r"])
def test_no_direction_is_left_out(backend: str, device: torch.device, what: str) -> None:
    origin = [torch.tensor([1.0, 2.0], device=device)]
    w = origin[0] + (0.0 if what == "T is 0" else 1.0)
    mean = [torch.full((2,), 7.0, device=device)]
    step = accumulate_task_vector_([w], origin, mean, total=[torch.full((2,), -3.0, device=device)])
    assert (step.degenerate, step.nonfinite, step.skipped) == (True, False, True)
    assert mean[0].tolist() == [7.0, 7.0]
    assert w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("where", ["params", "total", "own"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_never_enters_the_mean(backend: str, device: torch.device, where: str, value: float) -> None:
    unit = make_unit((BF16, F32, BF16), device=device)
    getattr(unit, where)[3][5, 100] = value
    before = [bits_of(t) for t in unit.mean]
    step = unit.run()
    assert (step.nonfinite, step.skipped) == (True, True)
    assert [bits_of(t) for t in unit.mean] == before
    assert [bits_of(t) for t in unit.params] == [bits_of(t) for t in unit.origin]


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e35])
def test_scales(backend: str, device: torch.device, scale: float) -> None:
    """float32 squares of these over- or underflow; directions are what they are."""
    unit = make_unit((F32, F32, F32), device=device, shapes=[(7,), (1000,)])
    for tensors in (unit.params, unit.origin):
        for tensor in tensors:
            tensor.mul_(scale)
    for tensors in (unit.total, unit.own):
        for tensor in tensors:
            tensor.mul_(1.0 / scale)  # type: ignore[union-attr]
    expected = unit.expected()
    unit.run()
    assert_within(flat64(unit.mean, unit.params), expected, 2e-5 * np.abs(expected) + 2e-6, "mean")


# Weights whose products are normal float32 numbers: below, the bound would be the format's, not the pass's.
WEIGHTS = st.floats(-2.0, -1e-30) | st.just(0.0) | st.floats(1e-30, 2.0)


@given(seed=st.integers(0, 2**16), weight=WEIGHTS, opposite=st.floats(0.0, 0.99))
def test_what_is_added_never_opposes_the_rest(seed: int, weight: float, opposite: float) -> None:
    unit = make_unit((F32, F32, F32), shapes=[(5,), (70,)], seed=seed, opposite=opposite)
    for mean in unit.mean:
        mean.zero_()
    rest = flat64(unit.total, unit.params) - flat64(unit.own, unit.params)
    unit.run(weight=weight)
    added = flat64(unit.mean, unit.params)
    assert float(np.linalg.norm(added)) == pytest.approx(abs(weight), rel=2e-3)
    assert math.copysign(1.0, weight) * float(added @ rest) >= -1e-4 * abs(weight) * float(np.linalg.norm(rest))


def test_order_of_the_parameters_does_not_matter(backend: str) -> None:
    unit = make_unit(KINDS[:5], shapes=[(40 + row,) for row in range(10)])
    turned = Unit(*([t.clone() for t in reversed(values)] for values in vars(unit).values()))  # type: ignore[misc]
    unit.run()
    turned.run()
    for one, two in zip(unit.mean, reversed(turned.mean), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_threads_and_runs_give_the_same_bits(thread_count: Callable[[int], None]) -> None:
    found = []
    for threads in (1, 2, 3, 2):
        thread_count(threads)
        unit = make_unit((BF16, F32, BF16), shapes=[(300_000,), (70_001,)])
        step = unit.run()
        found.append([*map(bits_of, unit.mean), step.stats.numpy().tobytes()])
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_vector_levels(vector_level: str, kind: tuple[torch.dtype, ...]) -> None:
    unit = make_unit(kind)
    expected = unit.expected()
    allowed = allowed_of(unit, expected)
    unit.run()
    assert_within(flat64(unit.mean, unit.params), expected, allowed, vector_level)


def test_more_rows_than_one_launch_takes(backend: str, device: torch.device) -> None:
    unit = make_unit((F32, F32, F32), device=device, shapes=[(3,)] * 1300)
    expected = unit.expected()
    allowed = allowed_of(unit, expected)
    unit.run()
    assert_within(flat64(unit.mean, unit.params), expected, allowed, "mean")


def test_layouts_that_differ(backend: str, device: torch.device) -> None:
    """A transposed parameter beside a contiguous gradient; an expanded origin and total."""
    generator = torch.Generator().manual_seed(3)
    w, start, grad = (torch.randn(5, 4, generator=generator) for _ in range(3))
    plain = Unit([w.clone()], [start.clone()], [torch.zeros(5, 4)], [grad.clone()], [None])
    expected = plain.expected().reshape(5, 4)
    params, mean = w.t().contiguous().t().to(device), torch.zeros(4, 5, device=device).t()
    assert not params.is_contiguous()
    accumulate_task_vector_([params], [start.to(device)], [mean], total=[grad.to(device)])
    np.testing.assert_allclose(mean.cpu().numpy(), expected, atol=1e-6)
    assert torch.equal(params.cpu(), start)

    one = torch.ones(1, device=device).expand(6)
    w = torch.arange(6.0, device=device)
    accumulate_task_vector_([w], [one], [mean_of := torch.zeros(6, device=device)], total=[one], normalize=False)
    assert mean_of.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert w.tolist() == [1.0] * 6


def test_tied_parameters_count_once(backend: str) -> None:
    w, mean, other = torch.tensor([3.0]), torch.zeros(1), torch.zeros(1)
    origin = [torch.zeros(1), torch.zeros(1)]
    step = accumulate_task_vector_([("a", w), ("b", w)], origin, [mean, other], normalize=False)
    assert (step.norm, mean.item(), other.item()) == (3.0, 3.0, 0.0)


# ---- blends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y_is_wide", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subtract_against_float64(backend: str, device: torch.device, dtype: torch.dtype, y_is_wide: bool) -> None:
    unit = make_unit((dtype, dtype, dtype), device=device)
    vector = [v if y_is_wide else v.to(dtype) for v in unit.mean]
    subtract_(unit.params, unit.origin, vector, 0.7)
    x, y = flat64(unit.origin, unit.params), flat64(vector, unit.params)
    exact = x - 0.7 * y
    allowed = HALF_PLACE[dtype] * np.abs(exact) + 2.0**-23 * (np.abs(x) + np.abs(y)) + 1e-7
    assert_within(flat64(unit.params, unit.params), exact, allowed, "params")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpolate(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    unit = make_unit((dtype, dtype, dtype), device=device)
    unlearned = [t.clone() for t in unit.params]
    for alpha in (0.3, 1.0, 0.0, 1.5):
        interpolate_(unit.params, unlearned, unit.origin, alpha)
        x, y = flat64(unlearned, unlearned), flat64(unit.origin, unlearned)
        exact = alpha * x + (1.0 - alpha) * y
        allowed = HALF_PLACE[dtype] * np.abs(exact) + 2.0**-22 * (np.abs(x) + np.abs(y)) + 1e-7
        assert_within(flat64(unit.params, unlearned), exact, allowed, f"alpha {alpha}")
        if alpha in (0.0, 1.0):
            end = unlearned if alpha else unit.origin
            assert [bits_of(t) for t in unit.params] == [bits_of(t) for t in end]


def test_what_weighs_nothing_is_not_read(backend: str, device: torch.device) -> None:
    w, nan = torch.zeros(9, device=device), torch.full((9,), math.nan, device=device)
    one = torch.ones(9, device=device)
    interpolate_([w], [nan], [one], 0.0)
    assert w.tolist() == [1.0] * 9
    subtract_([w], [2 * one], [nan], 0.0)
    assert w.tolist() == [2.0] * 9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blend_of_vector_levels(vector_level: str, dtype: torch.dtype) -> None:
    unit = make_unit((dtype, dtype, dtype))
    subtract_(unit.params, unit.origin, unit.mean, -0.25)
    exact = flat64(unit.origin, unit.params) + 0.25 * flat64(unit.mean, unit.params)
    assert_within(
        flat64(unit.params, unit.params), exact, HALF_PLACE[dtype] * np.abs(exact) * 1.01 + 3e-7, vector_level
    )


def test_blend_of_layouts_that_differ(backend: str) -> None:
    x, y = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(3, 2).t()
    w = torch.zeros(3, 2).t()
    subtract_([w], [x], [y], 2.0)
    torch.testing.assert_close(w, x - 2 * y)


# ---- wrong uses ------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, Any, type[Exception], str]] = {
    "shape": ("origin", torch.zeros(3), ValueError, r"expected shape \(2,\) as its parameter, got \(3,\)"),
    "dtype of origin": ("origin", torch.zeros(2, dtype=BF16), TypeError, "expected .*float32, got .*bfloat16"),
    "dtype of mean": ("mean", torch.zeros(2, dtype=F16), TypeError, "expected .*float32, got .*float16"),
    "dtype of total": ("total", torch.zeros(2, dtype=F16), TypeError, "expected .*float32.*, got .*float16"),
    "integers": ("own", torch.zeros(2).long(), TypeError, "expected float32, bfloat16 or float16, got .*int64"),
    "no tensor": ("origin", 3, TypeError, "expected a torch.Tensor, got int"),
    "expanded mean": ("mean", torch.zeros(1).expand(2), ValueError, "expected one element for each place, got "),
}  # fmt: skip


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_tensor(backend: str, fault: str, named: bool) -> None:
    where, tensor, error, message = FAULTS[fault]
    lists: dict[str, list[Any]] = {
        name: [torch.ones(2), torch.ones(2)] for name in ("params", "origin", "mean", "total", "own")
    }
    lists[where][1] = tensor
    params: list[Any] = lists.pop("params")
    before = [bits_of(params[0]), bits_of(lists["mean"][0])]
    given = list(zip(("first", "second.weight"), params, strict=True)) if named else params
    label = rf"^{where}\[1\]{' .second.weight.' if named else ''}: "
    with pytest.raises(error, match=label + message):
        accumulate_task_vector_(given, **lists)
    assert [bits_of(params[0]), bits_of(lists["mean"][0])] == before


@pytest.mark.parametrize("what", ["origin", "mean", "total", "own"])
def test_lengths(backend: str, what: str) -> None:
    lists = {name: [torch.ones(2), torch.ones(2)] for name in ("origin", "mean", "total", "own")}
    lists[what] = [torch.ones(2)]
    with pytest.raises(ValueError, match=rf"^{what}: expected 2 entries, one per parameter, got 1$"):
        accumulate_task_vector_([torch.ones(2), torch.zeros(2)], **lists)


def test_numbers(backend: str) -> None:
    w = [torch.ones(2)]
    for call, name in (
        (lambda: accumulate_task_vector_(w, w, w, weight=math.nan), "weight"),
        (lambda: subtract_(w, w, w, math.inf), "strength"),
        (lambda: interpolate_(w, w, w, math.nan), "alpha"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: expected a finite number, got"):
            call()
    with pytest.raises(ValueError, match="params: expected at least one parameter, got none"):
        subtract_([], [], [], 1.0)


def test_blend_faults_name_the_list(backend: str) -> None:
    w = [torch.ones(2)]
    with pytest.raises(ValueError, match=r"^vector\[0\].*: expected shape \(2,\) as its parameter, got \(3,\)"):
        subtract_(w, [torch.ones(2)], [torch.ones(3)], 1.0)
    with pytest.raises(TypeError, match=r"^unlearned\[0\].*: expected .*float32, got .*bfloat16"):
        interpolate_(w, [torch.ones(2, dtype=BF16)], [torch.ones(2)], 0.5)
    with pytest.raises(ValueError, match="origin: expected 1 entries, one per parameter, got 2"):
        subtract_(w, [torch.ones(2)] * 2, [torch.ones(2)], 1.0)


def test_memory_that_is_shared() -> None:
    buffer = torch.ones(8)
    with pytest.raises(ValueError, match=r"origin\[0\].*overlaps params\[0\]|params\[0\].*overlaps origin\[0\]"):
        accumulate_task_vector_([buffer[:4]], [buffer[2:6]], [torch.zeros(4)])
    with pytest.raises(ValueError, match=r"overlaps"):
        accumulate_task_vector_([buffer[:4]], [torch.zeros(4)], [buffer[:4]])
    same = torch.ones(4)
    subtract_([torch.zeros(4)], [same], [same], 1.0)  # read only: allowed


def test_a_device_without_kernels_uses_the_reference_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda device: False)
    monkeypatch.setattr("gru_fast.core.backends.choice._warned_devices", set())
    w, mean = torch.tensor([2.0]), torch.zeros(1)
    with pytest.warns(RuntimeWarning, match="gru_fast has no compiled kernels for cpu tensors"):
        accumulate_task_vector_([w], [torch.zeros(1)], [mean])
    assert mean.tolist() == [1.0]


def test_several_devices_are_one_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts with sums of their own, as two devices have them."""
    unit = make_unit((F32, F32, F32), shapes=[(40,), (41,), (42,)], opposite=0.9)
    whole = Unit(*([t.clone() for t in values] for values in vars(unit).values()))  # type: ignore[misc]
    one, two = torch.device("cpu"), torch.device("cpu", 0)
    monkeypatch.setattr(vectors._Named, "rows_by_device", lambda self: {one: [0, 2], two: [1]})
    step = unit.run()
    monkeypatch.undo()
    expected = whole.run()
    assert step.cos == pytest.approx(expected.cos)
    assert step.norm_rectified == pytest.approx(expected.norm_rectified, rel=1e-5)
    for left, right in zip(unit.mean, whole.mean, strict=True):
        torch.testing.assert_close(left, right)


def test_classes_are_what_they_say() -> None:
    """Both backends offer what the public functions call."""
    for left, right in ((NativeUnit, ReferenceUnit), (NativeBlend, ReferenceBlend)):
        public = [{name for name in vars(cls) if not name.startswith("_")} for cls in (left, right)]
        assert public[0] == public[1]
