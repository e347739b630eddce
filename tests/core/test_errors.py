"""Misuse: the message names the argument, what was expected and found and what to do, and nothing has been written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensors import BF16, F16, bits_of
from torch import Tensor, nn

from gru_fast import RetainEMA, rectify_
from gru_fast.core.backends.native import NativePasses
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.backends.reference import ReferencePasses
from gru_fast.core.load import core

Passes = Callable[..., Any]
pytestmark = pytest.mark.core


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def parameter(grad: Tensor | None, *, value: Tensor | None = None) -> nn.Parameter:
    param = nn.Parameter(
        torch.zeros(2) if grad is None and value is None else torch.zeros_like(grad if value is None else value)
    )
    param.grad = grad
    return param


def test_a_list_that_gets_shorter_while_it_is_read() -> None:
    """By a ``grad`` that is written in Python: an error, no read past its end."""

    class Shortens:
        def __init__(self, params: list[Any]) -> None:
            self.params = params

        @property
        def grad(self) -> None:
            del self.params[1:]

        @grad.setter
        def grad(self, value: None) -> None: ...

    params: list[Any] = []
    params += [Shortens(params) for _ in range(50)]
    with pytest.raises(IndexError):
        core.gradients(params)
    assert core.gradients([Shortens([1]), Shortens([])]) == [None, None]


def assert_one_line(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text, f"a message of {text.count(chr(10)) + 1} lines: {text[:300]}"


# ---- lists that do not fit together ----------------------------------------------------------------------------------
# What comes after the fault would be written if anything were: g opposes e and r differs from e.


@dataclass(frozen=True)
class Fault:
    """Replaces entry 1 of one list; both backends refuse it."""

    where: str
    make: Callable[[], Any]
    error: type[Exception]
    message: str  # regex of both backends
    native: str = ""  # and what the compiled one adds


NO_KERNEL = r"expected float32, bfloat16 or float16, got .*"
MISFIT = r"expected shape \(4,\).*, got "
FAULTS = {
    "float64 g": Fault("grads", lambda: ones(4).double(), TypeError, NO_KERNEL + "float64", "convert"),
    "float64 r": Fault("retain_grads", lambda: ones(4).double(), TypeError, NO_KERNEL + "float64", "convert"),
    "float64 e": Fault("ema", lambda: ones(4).double(), TypeError, NO_KERNEL + "float64", "convert"),
    "int g": Fault("grads", lambda: ones(4).int(), TypeError, NO_KERNEL + "int32", "convert"),
    "bool g": Fault("grads", lambda: ones(4).bool(), TypeError, NO_KERNEL + "bool", "convert"),
    "complex g": Fault("grads", lambda: ones(4) + 0j, TypeError, NO_KERNEL + "complex64", "convert"),
    "sparse g": Fault(
        "grads", lambda: ones(4).to_sparse(), TypeError, r"expected a dense .*got torch.sparse_coo", "dense gradients"
    ),
    "list as g": Fault("grads", lambda: [1.0] * 4, TypeError, r"expected a torch.Tensor, got list"),
    "None as e": Fault("ema", lambda: None, TypeError, r"expected a torch.Tensor, got None"),
    "shape of g": Fault("grads", lambda: ones(5), ValueError, MISFIT + r"\(5,\)", "in the order of the parameters"),
    "shape of r": Fault("retain_grads", lambda: ones(4, 1), ValueError, MISFIT + r"\(4, 1\)", "in the order"),
    "dimensions of g": Fault("grads", lambda: ones(1, 4), ValueError, MISFIT + r"\(1, 4\)", "in the order"),
    "dtype of r": Fault("retain_grads", lambda: ones(4).half(), TypeError, r"expected .*grads\[1\].*, got .*float16"),
    "dtype of e": Fault(
        "ema", lambda: ones(4).half(), TypeError, r"expected float32 or the gradient's .*32, got .*float16", "dtype="
    ),
    "meta g": Fault("grads", lambda: torch.ones(4, device="meta"), ValueError, r"expected cpu.*, got meta"),
    "meta r": Fault("retain_grads", lambda: torch.ones(4, device="meta"), ValueError, r"expected cpu.*, got meta"),
    "meta e": Fault("ema", lambda: torch.ones(4, device="meta"), ValueError, r"expected cpu.*, got meta"),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])
def test_faulty_tensor(passes: Passes, fault: str, named: bool) -> None:
    case = FAULTS[fault]
    lists: dict[str, list[Any]] = {
        "grads": [-ones(4), -ones(4)], "retain_grads": [ones(4) * 2, ones(4) * 2], "ema": [ones(4), ones(4)]
    }  # fmt: skip
    lists[case.where][1] = case.make()
    names = ["first", "second.weight"] if named else None
    before = [bits_of(tensors[0]) for tensors in lists.values()]
    label = rf"^{case.where}\[1\]{' .second.weight.' if named else ''}: "
    with pytest.raises(case.error, match=label + case.message) as caught:
        passes(Rows(lists["grads"], lists["retain_grads"], lists["ema"], names=names)).step(StepArgs(0.5, 0.5), None)
    assert [bits_of(tensors[0]) for tensors in lists.values()] == before
    assert_one_line(caught.value)
    if passes is NativePasses:
        assert case.native in str(caught.value)


@pytest.mark.parametrize("passes", [NativePasses, ReferencePasses])
@pytest.mark.parametrize("what", ["grads", "retain_grads"])
@pytest.mark.parametrize("count", [1, 3])
def test_lengths(passes: Passes, what: str, count: int) -> None:
    lists = {"grads": [ones(2), ones(2)], "retain_grads": [ones(2), ones(2)], "ema": [ones(2), ones(2)]}
    lists[what] = [ones(2) for _ in range(count)]
    with pytest.raises(ValueError, match=rf"^{what}: expected 2 entries, one per parameter, got {count}$"):
        passes(Rows(lists["grads"], lists["retain_grads"], lists["ema"]))


@pytest.mark.parametrize("what", ["ids", "ema_is_current"])
def test_lengths_of_the_small_lists(what: str) -> None:
    with pytest.raises(ValueError, match=rf"^{what}: expected 2 entries, one per parameter, got 1"):
        NativePasses(Rows([ones(2), ones(2)], None, [ones(2), ones(2)], **{what: [1]}))


def test_ema_of_another_16_bit_dtype() -> None:
    with pytest.raises(TypeError, match=r"^ema\[0\]: expected float32 or the gradient's float16, got bf"):
        NativePasses(Rows([ones(2, dtype=F16)], None, [ones(2, dtype=BF16)]))


# ---- memory that is shared -------------------------------------------------------------------------------------------

BUFFER = torch.ones(20)
SHARED: dict[str, tuple[list[Tensor], list[Tensor] | None, list[Tensor], str]] = {
    "e is g": ([BUFFER[:4]], None, [BUFFER[:4]], r"(grads|ema)\[0\].*overlaps (grads|ema)\[0\]"),
    "r is g": ([BUFFER[:4]], [BUFFER[:4]], [ones(4)], r"grads\[0\].*overlaps (retain_)?grads\[0\]"),
    "one g twice": ([BUFFER[:4], BUFFER[:4]], None, [ones(4), ones(4)], r"grads\[[01]\].*overlaps grads\[[01]\]"),
    "overlapping views": ([BUFFER[:5], BUFFER[4:9]], None, [ones(5), ones(5)], r"grads\[1\].*overlaps grads\[0\]"),
    "one inside another": (
        [BUFFER[:10], BUFFER[12:14], BUFFER[3:4]],
        None,
        [ones(10), ones(2), ones(1)],
        r"grads\[2\].*overlaps grads\[0\]",
    ),
    "an e inside a g": ([BUFFER[:10], ones(2)], None, [ones(10), BUFFER[8:10]], r"ema\[1\].*overlaps grads\[0\]"),
    "strided inside dense": ([BUFFER[:8], BUFFER[1:9:2]], None, [ones(8), ones(4)], r"grads\[1\].*overlaps grads\[0\]"),
    "strided in between": (
        [BUFFER[:10], BUFFER[1:5:2], BUFFER[6:9]], None, [ones(10), ones(2), ones(3)], r"overlaps grads\[0\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_overlapping_memory(case: str) -> None:
    grads, retain, ema, message = SHARED[case]
    before = bits_of(BUFFER)
    for _ in range(2):  # a list that was refused is not remembered as good
        with pytest.raises(ValueError, match=rf"{message}; clone\(\) one of them, and list a tied parameter once"):
            NativePasses(Rows(grads, retain, ema)).step(StepArgs(0.5, 0.5), None)
    assert bits_of(BUFFER) == before


@pytest.mark.parametrize(
    "grads",
    [
        lambda b: [b[:10], b[10:]],
        lambda b: [b[10:], b[:10]],
        lambda b: [b[::2], b[1::2]],
        lambda b: [b[:10], b[5:5], b[10:]],
    ],
    ids=["side by side", "turned", "interleaved", "empty inside"],
)
def test_memory_side_by_side_is_fine(grads: Callable[[Tensor], list[Tensor]]) -> None:
    given = grads(torch.full((20,), -2.0))
    take = NativePasses(Rows(given, None, [torch.ones_like(g) for g in given], ema_is_current=True))
    take.step(StepArgs(1.0, 0.0), None)
    assert all(g.tolist() == [0.0] * len(g) for g in given)


@pytest.mark.parametrize("which", ["g", "e"])
def test_elements_that_share_memory(which: str) -> None:
    """An expanded tensor cannot be written element by element."""
    expanded = torch.ones(1).expand(5)
    param = nn.Parameter(torch.zeros(5))
    param.grad = expanded if which == "g" else ones(5)
    ema = [expanded if which == "e" else torch.zeros(5)]
    with pytest.raises(ValueError, match=r"^(grads|ema)\[0\]: expected"):
        rectify_([param], ema, 1.0, retain_grads=[-torch.arange(1.0, 6.0)])
    assert expanded.tolist() == [1.0] * 5
    if which == "g":
        assert ema[0].tolist() == [0.0] * 5


# ---- arguments of rectify_ -------------------------------------------------------------------------------------------


class Step:
    """A step that would change g and e, in either form; ``unchanged`` says whether it did."""

    def __init__(self, form: str) -> None:
        self.params = [parameter(-ones(3)), parameter(-ones(2))]
        self.retain: list[Tensor | None] | None = [ones(3), ones(2)]
        self.ema: Any = [torch.full((3,), 2.0), torch.full((2,), 2.0)]
        if form == "RetainEMA":
            self.ema = RetainEMA(self.params)
            with self.ema.collect():
                for param in self.params:
                    param.grad = torch.ones_like(param)
            self.retain = None
        self._tensors = self.ema.tensors if form == "RetainEMA" else list(self.ema)
        self._before = self._state()

    def _state(self) -> list[list[float]]:
        return [t.tolist() for t in (*self._tensors, *(p.grad for p in self.params if p.grad is not None))]

    def unchanged(self) -> bool:
        return self._state() == self._before

    def go(self, **changes: Any) -> None:
        arguments = {"params": self.params, "ema": self.ema, "gamma": 0.5, "retain_grads": self.retain, **changes}
        rectify_(**arguments)


@pytest.fixture(params=["sequence", "RetainEMA"])
def step(request: pytest.FixtureRequest) -> Step:
    return Step(request.param)


@pytest.mark.parametrize(
    ("gamma", "error", "found"),
    [
        (-0.1, ValueError, "-0.1"),
        (1.5, ValueError, "1.5"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
        (True, TypeError, "bool"),
        ("0.5", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ],
)
def test_gamma(step: Step, gamma: Any, error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=rf"^gamma: expected a number in \[0, 1\].*, got {found}$"):
        step.go(gamma=gamma)
    assert step.unchanged()


@pytest.mark.parametrize(
    ("tau", "error", "found"),
    [
        (0, ValueError, "0.0"),
        (-1, ValueError, "-1.0"),
        (-math.inf, ValueError, "-inf"),
        (math.nan, ValueError, "nan"),
        (True, TypeError, "bool"),
        ("1", TypeError, "str"),
    ],
)
def test_tau(step: Step, tau: Any, error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=rf"^tau: expected a number above 0 or None.*, got {found}$"):
        step.go(tau=tau)
    assert step.unchanged()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (lambda p: {"a": p[0], "b": p[1]}, r"^params\[0\]: expected a torch.Tensor, got str"),
        (
            lambda p: [{"params": p}],
            r"^params\[0\]: expected a torch.Tensor, got dict; pass one flat list, not optimizer.param_g",
        ),
        (lambda p: p[0], r"^params: expected an iterable of parameters, got a tensor; pass \[tensor\]"),
        (lambda p: [p[0], None], r"^params\[1\]: expected a torch.Tensor, got NoneType"),
    ],
    ids=["dict", "param_groups", "tensor", "None"],
)
def test_params_of_another_type(step: Step, params: Callable[[list[Tensor]], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        step.go(params=params(step.params))
    assert step.unchanged()


def test_params_used_up(step: Step) -> None:
    used = iter(step.params)
    list(used)
    message = (
        r"^params: expected all 2 .* 2 are missing"
        if isinstance(step.ema, RetainEMA)
        else r"^ema: expected 0 entries, .* got 2"
    )
    with pytest.raises(ValueError, match=message):
        step.go(params=used)
    assert step.unchanged()
    with pytest.raises(
        ValueError, match=r"^params: expected at least one parameter, got none .was a generator used up before"
    ):
        RetainEMA(used)


@pytest.mark.parametrize(
    ("ema", "error", "message"),
    [
        (
            lambda e: torch.stack([e[0][:2], e[1]]),
            TypeError,
            r"^ema: expected a RetainEMA or a list of tensors, got Tensor$",
        ),
        (iter, TypeError, r"^ema: expected a RetainEMA or a list of tensors, got list_iterator$"),
        (lambda e: dict(enumerate(e)), TypeError, r"^ema: expected a RetainEMA or a list of tensors, got dict$"),
        (lambda _: None, TypeError, r"^ema: expected a RetainEMA or a list of tensors, got NoneType$"),
        (lambda _: "ab", TypeError, r"^ema(\[0\])?: expected .*, got str$"),
        (lambda e: [e[0], None], TypeError, r"^ema\[1\]: expected a torch.Tensor, got None"),
        (lambda e: e[:1], ValueError, r"^ema: expected 2 entries, one per parameter, got 1$"),
        (lambda e: [*e, e[0]], ValueError, r"^ema: expected 2 entries, one per parameter, got 3$"),
        (
            lambda e: e[::-1],
            ValueError,
            r"^grads\[0\]: expected shape \(2,\).*, got \(3,\); give the lists in the order",
        ),
    ],
    ids=["tensor", "generator", "dict", "None", "string", "None inside", "short", "long", "turned"],
)
def test_ema_of_another_form(ema: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    step = Step("sequence")
    with pytest.raises(error, match=message):
        step.go(ema=ema(step.ema))
    assert step.unchanged()


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_retain_grads(count: int) -> None:
    step = Step("sequence")
    with pytest.raises(ValueError, match=rf"^retain_grads: expected 2 entries, one per parameter, got {count}$"):
        step.go(retain_grads=[ones(3), ones(2), ones(2)][:count])
    assert step.unchanged()


def test_retain_grads_beside_collected_ones() -> None:
    step = Step("RetainEMA")
    with pytest.raises(
        ValueError, match=r"^retain_grads: expected None, since this step's retain gradients are in the EMA"
    ):
        step.go(retain_grads=[ones(3), ones(2)])
    assert step.unchanged()


def test_parameters_of_another_dtype() -> None:
    for dtype in (torch.float64, torch.int64):
        param = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)
        with pytest.raises((TypeError, ValueError), match=r"^params"):
            RetainEMA([param])
    with pytest.raises(TypeError, match=r"^params\[0\]: expected float32, bfloat16 or float16, got torch.float64"):
        RetainEMA([nn.Parameter(torch.zeros(2, dtype=torch.float64))])


def test_sparse_gradient_names_the_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Embedding(5, 3, sparse=True))
    ema = RetainEMA(model.named_parameters())
    model[0].weight.grad = -torch.ones(3, 3)
    model[1](torch.tensor([1])).sum().backward()
    with pytest.raises(
        TypeError, match=r'^grads\[1\] "1.weight": expected a dense .*sparse_coo.*nn.Embedding\(sparse=Fal'
    ) as caught:
        rectify_(model.parameters(), ema, 0.5)
    assert all(not e.any() for e in ema.tensors)
    assert_one_line(caught.value)


def test_parameters_the_ema_does_not_follow() -> None:
    known, other = parameter(-ones(2)), parameter(-ones(3))
    ema = RetainEMA([known])
    with pytest.raises(
        ValueError, match=r"^params\[1\] of shape \(3,\): has a gradient, but the RetainEMA does not follow"
    ):
        rectify_([known, other], ema, 0.5)
    with pytest.raises(ValueError, match=r"^params: expected all 1 parameters .* 1 are missing, first number 0"):
        rectify_([], ema, 0.5)


# ---- a parameter listed twice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0, 1]])
@pytest.mark.parametrize("form", ["sequence", "RetainEMA"])
def test_tied_parameter_counts_once(form: str, order: list[int]) -> None:
    params = [parameter(torch.tensor([3.0])), parameter(torch.tensor([4.0]))]
    ema: Any = [torch.ones(1), torch.ones(1)]
    given = [params[i] for i in order]
    step = rectify_(given, RetainEMA(given) if form == "RetainEMA" else [ema[i] for i in order], 0.5)
    assert step.norm_before == 5.0


def test_tied_parameter_is_rectified_once() -> None:
    # d = -2 - 1 = -3, m = 2, beta = 1.5; counted twice it would be another.
    params = [parameter(torch.tensor([-2.0])), parameter(torch.tensor([-1.0]))]
    ema = [torch.ones(1), torch.ones(1)]
    rectify_([params[0], params[0], params[1]], [ema[0], ema[0], ema[1]], 0.5)
    assert [p.grad.item() for p in params if p.grad is not None] == [-0.5, 0.5]


# ---- the helper tensors of the compiled passes -----------------------------------------------------------------------


def test_helper_tensors_are_checked() -> None:
    table = core.Table([-ones(4)], None, [ones(4)])
    scratch = torch.empty(table.scratch_bytes, dtype=torch.uint8)
    stats = torch.empty(16, dtype=torch.float64)
    for bad in (stats.float(), stats[:15], torch.empty(32, dtype=torch.float64)[::2]):
        with pytest.raises(ValueError, match=r"^stats: expected at least 16 contiguous float64 on cpu, got"):
            table.reduce(bad, scratch, None, 0.5, 0.5, 0, False, 1)
    with pytest.raises(ValueError, match=r"^scratch: expected at least \d+ contiguous uint8 on cpu, got"):
        table.reduce(stats, scratch[:-1], None, 0.5, 0.5, 0, False, 1)
    with pytest.raises(ValueError, match=r"^rounding_step: expected at least 1 contiguous int64 on cpu, got"):
        table.reduce(stats, scratch, torch.zeros(1), 0.5, 0.5, 0, False, 1)


def test_unknown_vector_level() -> None:
    with pytest.raises(ValueError, match=r'^no vector level "sse9" on this machine$'):
        core.use_vector_level("sse9")
