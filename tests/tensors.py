"""Lists of tensors for the tests of the passes: odd sizes, empty ones, misaligned views, every pair of dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracle import (
    DTYPE_NAMES,
    QUANTUM,
    UNIT,
    Codes,
    Outcome,
    Vector,
    assert_within,
    dot_product,
    ema_error,
    grad_error,
    lookup,
    rectify,
    updated_ema,
)
from torch import Tensor

from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.load import core
from gru_fast.core.rules import Rule, rule_of

EMULATED = hasattr(core, "emulation")  # .ci/emulate: the CUDA kernels serve the CPU

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = (F32, BF16, F16)
KINDS = {
    "f32": (F32, F32),
    "bf16-f32": (BF16, F32),
    "bf16": (BF16, BF16),
    "f16-f32": (F16, F32),
    "f16": (F16, F16),
}  # dtypes of (g and r, e)
KIND_NAMES = tuple(KINDS)

# Empty first, in the middle and last; one element; odd; two dimensions; none.
SMALL_SHAPES: tuple[tuple[int, ...], ...] = ((0,), (1,), (7,), (33, 129), (0, 4), (), (3, 5), (255,), (2, 0))
TILE_SHAPES: tuple[tuple[int, ...], ...] = ((0,), (65535,), (65536,), (3, 0), (65537,), (1,), (0,))

STATS = (
    "dot", "ema_norm_sq", "grad_norm_sq", "retain_nonfinite", "vetoed", "written_norm_sq", "alpha", "beta", "rescale",
    "out_norm_sq", "conflict", "clipped", "degenerate", "grad_nonfinite",
)  # fmt: skip


def shifted(values: Tensor, offset: int = 1) -> Tensor:
    """The same values in memory that starts ``offset`` elements into a buffer: aligned to the dtype and no more."""
    buffer = torch.full((values.numel() + offset + 3,), math.nan, dtype=values.dtype, device=values.device)
    view = buffer[offset : offset + values.numel()].view(values.shape)
    return view.copy_(values)


@dataclass
class Problem:
    """The tensors of one step."""

    grads: list[Tensor | None]
    retain: list[Tensor | None] | None
    ema: list[Tensor]

    def clone(self) -> Problem:
        def copy(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
            return [None if t is None else shifted(t, t.storage_offset()) for t in tensors]

        return Problem(copy(self.grads), None if self.retain is None else copy(self.retain), copy(self.ema))

    def grad64(self) -> Vector:
        return flat64(self.grads, self.ema)

    def retain64(self) -> Vector:
        return flat64(self.retain or [None] * len(self.ema), self.ema)

    def ema64(self) -> Vector:
        return flat64(self.ema, self.ema)

    def grad_dtypes(self) -> Codes:
        return _dtypes([e if g is None else g for g, e in zip(self.grads, self.ema, strict=True)])

    def ema_dtypes(self) -> Codes:
        return _dtypes(self.ema)

    def has_grad(self) -> NDArray[np.bool_]:
        marks = [np.full(e.numel(), g is not None) for g, e in zip(self.grads, self.ema, strict=True)]
        return np.concatenate([np.empty(0, bool), *marks])

    def bits(self) -> list[bytes]:
        """Everything, bit for bit."""
        tensors = [*self.grads, *(self.retain or []), *self.ema]
        return [b"" if t is None else bits_of(t) for t in tensors]


def flat64(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Vector:
    """One float64 vector of all, zeros for the missing ones."""
    parts = [
        np.zeros(e.numel()) if t is None else t.detach().double().cpu().numpy().ravel()
        for t, e in zip(tensors, like, strict=True)
    ]
    return np.concatenate([np.empty(0), *parts])


def bits_of(tensor: Tensor) -> bytes:
    integer = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer).cpu().numpy().tobytes()


def _dtypes(tensors: Sequence[Tensor]) -> Codes:
    codes = [np.full(t.numel(), DTYPE_NAMES.index(str(t.dtype).removeprefix("torch."))) for t in tensors]
    return np.concatenate([np.empty(0, np.int8), *codes]).astype(np.int8)


def make_problem(
    kinds: str | Sequence[str],
    shapes: Sequence[tuple[int, ...]] = SMALL_SHAPES,
    *,
    device: torch.device | str = "cpu",
    conflict: bool = True,
    seed: int = 0,
    grad_scale: float = 1.0,
    ema_scale: float = 1.0,
) -> Problem:
    """Normal values; cos(g, e) is about -0.7 with ``conflict``, +0.7 without. Most rows are misaligned."""
    rows = [kinds] * len(shapes) if isinstance(kinds, str) else [kinds[i % len(kinds)] for i in range(len(shapes))]
    generator = torch.Generator().manual_seed(seed)
    grads: list[Tensor | None] = []
    retain: list[Tensor | None] = []
    ema: list[Tensor] = []
    for row, (kind, shape) in enumerate(zip(rows, shapes, strict=True)):
        grad_dtype, ema_dtype = KINDS[kind]
        r, e, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
        g = (-1.0 if conflict else 1.0) * (r + e) / math.sqrt(2) + noise
        made = [
            (g * grad_scale).to(grad_dtype),
            (r * ema_scale).to(grad_dtype),
            (e * ema_scale).to(ema_dtype),
        ]
        made = [shifted(t.to(device), (row * (k + 1)) % 4) for k, t in enumerate(made)]
        grads.append(made[0])
        retain.append(made[1])
        ema.append(made[2])
    return Problem(grads, retain, ema)


@dataclass
class Result:
    """What a step left: the sums and flags by name, and the raw statistics."""

    raw: Tensor
    values: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.values = dict(zip(STATS, self.raw.tolist(), strict=False))

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def take_step(
    passes: Callable[..., Any],
    problem: Problem,
    gamma: float = 0.5,
    tau: float = math.inf,
    *,
    seed: int = 1234,
    step: int = 0,
    all_or_nothing: bool = False,
    ema_is_current: bool | list[bool] = False,
    ids: list[int] | None = None,
    keep: float | None = None,
    gain: float | None = None,
    rule: str | Rule = "gru",
) -> Result:
    """One step of a backend (``NativePasses`` or ``ReferencePasses``) on a problem, in place."""
    device = problem.ema[0].device
    rounding_step = torch.full((1,), step, dtype=torch.int64, device=device)
    made = passes(Rows(problem.grads, problem.retain, problem.ema, ema_is_current, ids))
    keep, gain = 1.0 - gamma if keep is None else keep, gamma if gain is None else gain
    args = StepArgs(keep, gain, tau, rule=rule_of(rule), seed=seed, all_or_nothing=all_or_nothing)
    made.step(args, rounding_step)
    result = Result(made.stats.cpu())
    assert int(rounding_step) == step + (0 if result.vetoed else 1), "rounding step"
    return result


def check_step(
    before: Problem, after: Problem, result: Result, gamma: float, tau: float = math.inf, *, current: bool = False
) -> Outcome:
    """Everything a step promises of an ordinary problem, against the oracle. Returns the oracle's outcome."""
    stored = after.ema64()
    if current:
        assert [bits_of(e) for e in before.ema] == [bits_of(e) for e in after.ema], "a current e was written"
    else:
        exact = updated_ema(before.ema64(), before.retain64(), gamma)
        allowed = ema_error(before.ema64(), before.retain64(), gamma, before.ema_dtypes())
        assert_within(stored, exact, allowed, "e")
    grad, has_grad = before.grad64(), before.has_grad()
    outcome = rectify(grad, stored, tau)
    check_sums(result, outcome)
    # Rows without a g cannot be written: the passes rectify the others with the coefficients of the whole.
    part = Outcome(**{**vars(outcome), "grad": np.where(has_grad, outcome.grad, 0.0)})
    allowed = np.where(
        has_grad, grad_error(grad, stored, outcome, before.grad_dtypes(), rescaled=result.rescale != 1.0), 0.0
    )
    written = after.grad64()
    assert_within(written, part.grad, allowed, "g")
    assert (bool(result.conflict), bool(result.degenerate)) == (outcome.conflict, outcome.degenerate)
    assert not result.vetoed
    assert not result.grad_nonfinite
    check_postconditions(before, after, result, tau)
    return outcome


def check_sums(result: Result, outcome: Outcome) -> None:
    """The three sums to 1e-6 (the dot product relative to |g||e|: it may cancel)."""
    size = math.sqrt(outcome.ema_norm_sq) * math.sqrt(outcome.grad_norm_sq)
    found = np.array([result.dot, result.ema_norm_sq, result.grad_norm_sq])
    expected = np.array([outcome.dot, outcome.ema_norm_sq, outcome.grad_norm_sq])
    assert_within(found, expected, 1e-6 * np.array([size, *expected[1:]]), "sums d, m, u")


def check_postconditions(before: Problem, after: Problem, result: Result, tau: float = math.inf) -> None:
    """<g, e> >= 0 to rounding and |g| <= tau (1 + 1e-3), where every row has a gradient."""
    grad, ema = after.grad64(), after.ema64()
    norm = math.sqrt(dot_product(grad, grad))
    assert norm <= tau * (1.0 + 1e-3), f"|g| = {norm} > tau = {tau}"
    if np.all(before.has_grad()):
        # 1e-6 from the sums; scaling a 16-bit g once more cuts up to one place off each element after it was measured.
        units, quanta = (float(lookup(table, before.grad_dtypes()).max(initial=0.0)) for table in (UNIT, QUANTUM))
        allowed = 2e-6 * norm + (0.0 if result.rescale == 1.0 else 2.0 * units * norm + quanta * math.sqrt(len(grad)))
        found = math.sqrt(result.out_norm_sq)
        assert abs(found - norm) <= allowed, f"says |g| = {found}, is {norm}"
        outcome = rectify(before.grad64(), ema, tau)
        allowed = dot_product(
            grad_error(before.grad64(), ema, outcome, before.grad_dtypes(), rescaled=result.rescale != 1.0), np.abs(ema)
        )
        dot = dot_product(grad, ema)
        assert dot >= -allowed, f"<g, e> = {dot} after the step, at least {-allowed} expected"
