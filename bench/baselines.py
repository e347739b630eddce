"""The step as PyTorch users write it, from the public GRU code to the strongest forms that were found.

    official             flatten to the CPU, float64 numpy, restore, clip
    eager                one tensor after the other
    foreach              torch._foreach_*, no host sync: always does the full work
    foreach-sync         torch._foreach_*, one host sync, then only the work there is
    compile-lists        torch.compile over the lists: one graph, no host sync
    compile-lists-sync   the same in two graphs, with a host sync between them
    flat-blocked         g, r, e as one persistent buffer each; eager, a cache-sized block after the other
    flat-compile         one buffer each; one compiled graph
    flat-autotune        the same with mode="max-autotune": kernels chosen by timing them, CUDA graphs
    flat-compile-sync    one buffer each; two compiled graphs, with a host sync between them
    reference            gru_fast's own fallback without kernels, which makes every promise the kernels make

The flat forms ask for gradients that live in one buffer, which a model does not give by itself.

CPU sums: torch.dot and the norms lose digits on long float32 vectors (findings/torch_cpu_norms_of_long_vectors.sh), so
dots are taken over at most 1 M elements (7e-6). CPU torch.dot of 16-bit tensors is unusably slow: product and sum
instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import ClassVar

import numpy as np
import torch
from forms import Form, parameters_with
from problem import Problem

from gru_fast.core.backends import passes
from gru_fast.core.backends.reference import ReferencePasses

Rows = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


# ---- shared by the forms ---------------------------------------------------------------------------------------------


def list_rows(problem: Problem) -> Rows:
    """(g, r, e) of every parameter, as vectors."""
    lists = ([x.view(-1) for x in tensors] for tensors in (problem.grads, problem.retain, problem.ema))
    return list(zip(*lists, strict=True))


def flat_rows(problem: Problem) -> Rows:
    """(g, r, e) of the whole model."""
    return [(problem.flat_grad, problem.flat_retain, problem.flat_ema)]


def split_rows(rows: Rows, numel: int) -> Rows:
    """Rows of at most `numel` elements."""
    return [part for row in rows for part in zip(*(x.split(numel) for x in row), strict=True)]


def sum_numel(problem: Problem) -> int:
    """Elements of one torch.dot: see above for the CPU; CUDA's takes 32-bit counts."""
    return 1 << 20 if problem.device.type == "cpu" else 1 << 30


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dtype == b.dtype and (a.is_cuda or a.dtype == torch.float32):
        return torch.dot(a, b).float()
    return (a * b).sum(dtype=torch.float32)


def norm_sq(a: torch.Tensor) -> torch.Tensor:
    if a.dtype == torch.float32:
        return torch.dot(a, a)
    return torch.linalg.vector_norm(a, dtype=torch.float32 if a.is_cuda else None).float().square()


def three_sums(grad: torch.Tensor, ema: torch.Tensor) -> list[torch.Tensor]:
    return [dot(grad, ema), norm_sq(ema), norm_sq(grad)]


def total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(d, m, u) in float64 from their parts, which follow each other in threes."""
    return torch.stack(list(parts)).view(-1, 3).sum(0, dtype=torch.float64)


def update_ema(ema: torch.Tensor, retain: torch.Tensor, gamma: float) -> None:
    if ema.dtype == retain.dtype:
        ema.lerp_(retain, gamma)
    else:
        ema.mul_(1 - gamma).add_(retain, alpha=gamma)


def decide(sums: torch.Tensor, tau: float) -> tuple[float, float]:
    """(alpha, beta) on the host: waits for the sums."""
    d, m, u = sums.tolist()
    beta = -d / m if d < 0 < m else 0.0
    norm = sqrt(max(u + beta * d, 0.0))
    alpha = tau / norm if norm > tau else 1.0
    return alpha, alpha * beta


def decide_on_device(sums: torch.Tensor, tau: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, beta) as float32 tensors of one element, without a host sync."""
    d, m, u = sums.unbind()
    beta = torch.where((d < 0) & (m > 0), -d / m, torch.zeros_like(d))
    norm = (u + beta * d).clamp(min=0).sqrt()
    alpha = torch.where(norm > tau, tau / norm, torch.ones_like(d))
    return alpha.float(), (alpha * beta).float()


# ---- what is there already -------------------------------------------------------------------------------------------


class Official(Form):
    name = "official"
    summary = "public GRU code: flatten to CPU, float64 numpy, restore, clip"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.params = parameters_with(problem.grads)
        self.reset()

    @classmethod
    def working_bytes(cls, problem: Problem) -> int:
        return problem.numel * (4 * 8 + 3 * problem.grad_dtype.itemsize)

    def reset(self) -> None:
        # Its EMA is a flat CPU tensor, in place of the problem's e.
        self.ema = self.problem.flat_ema.to("cpu", copy=True)

    def step(self) -> None:
        problem = self.problem
        grad, retain = (torch.cat([x.view(-1) for x in xs]).to("cpu") for xs in (problem.grads, problem.retain))
        self.ema = problem.gamma * retain.to(self.ema.dtype) + (1 - problem.gamma) * self.ema
        wide_grad, wide_ema = grad.double().numpy(), self.ema.double().numpy()
        d = np.dot(wide_grad, wide_ema)
        if d < 0:
            projected = wide_grad - d / np.dot(wide_ema, wide_ema) * wide_ema
            grad = torch.from_numpy(projected).to(grad.dtype)
        for param, part, shape in zip(self.params, grad.split(problem.sizes), problem.shapes, strict=True):
            param.grad = part.view(shape).to(problem.device)
        torch.nn.utils.clip_grad_norm_(self.params, problem.tau)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        grads = [param.grad.view(-1) for param in self.params if param.grad is not None]
        return torch.cat(grads), self.ema.to(self.problem.device)


class Reference(Form):
    name = "reference"
    summary = "gru_fast.reference: plain PyTorch with all promises of the kernels"
    by_default = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.stochastic = problem.ema_dtype != torch.float32
        self.rounding_step = torch.zeros(1, dtype=torch.int64)

    def step(self) -> None:
        problem = self.problem
        step = ReferencePasses(passes.Rows(problem.grads, problem.retain, problem.ema))
        step.step(passes.StepArgs(1 - problem.gamma, problem.gamma, problem.tau), self.rounding_step)


# ---- eager -----------------------------------------------------------------------------------------------------------


class Eager(Form):
    name = "eager"
    summary = "per tensor; one host sync; g written in one pass"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.rows = self.make_rows(problem)
        self.parts = [split_rows([row], sum_numel(problem)) for row in self.rows]
        self.one = torch.ones(1, dtype=problem.grad_dtype, device=problem.device)

    def make_rows(self, problem: Problem) -> Rows:
        return list_rows(problem)

    def step(self) -> None:
        sums = []
        for (_, retain, ema), parts in zip(self.rows, self.parts, strict=True):
            update_ema(ema, retain, self.problem.gamma)
            for grad_part, _, ema_part in parts:
                sums += three_sums(grad_part, ema_part)
        alpha, beta = decide(total(sums), self.problem.tau)
        if (alpha, beta) != (1.0, 0.0):
            for grad, _, ema in self.rows:
                self.apply(grad, ema, alpha, beta)

    def apply(self, grad: torch.Tensor, ema: torch.Tensor, alpha: float, beta: float) -> None:
        if grad.dtype == ema.dtype:  # alpha * g + beta * outer([1], e): the one call that scales both in one pass
            grad.view(1, -1).addr_(self.one, ema, beta=alpha, alpha=beta)
        else:
            grad.mul_(alpha).add_(ema, alpha=beta)


class FlatBlocked(Eager):
    name = "flat-blocked"
    summary = "one flat buffer; eager by blocks of 1 M elements; one host sync"

    def make_rows(self, problem: Problem) -> Rows:
        return split_rows(flat_rows(problem), sum_numel(problem))


# ---- torch._foreach_* ------------------------------------------------------------------------------------------------


class ForeachSync(Form):
    name = "foreach-sync"
    summary = "torch._foreach_*; one host sync, then only the work there is"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        rows = list_rows(problem)
        self.grads, self.retain, self.ema = (list(column) for column in zip(*rows, strict=True))
        self.parts = split_rows(rows, sum_numel(problem))

    def update_ema(self) -> None:
        gamma = self.problem.gamma
        if self.problem.ema_dtype == self.problem.grad_dtype:
            torch._foreach_lerp_(self.ema, self.retain, gamma)
        else:
            torch._foreach_mul_(self.ema, 1 - gamma)
            torch._foreach_add_(self.ema, self.retain, alpha=gamma)

    def sums(self) -> torch.Tensor:
        if self.problem.device.type == "cpu":
            return total([x for grad, _, ema in self.parts for x in three_sums(grad, ema)])
        # There is no foreach dot.
        dots = torch.stack([dot(grad, ema) for grad, _, ema in self.parts])
        norms = (torch.stack(torch._foreach_norm(xs, 2, dtype=torch.float32)) for xs in (self.ema, self.grads))
        return torch.stack([dots.double().sum(), *(x.double().square().sum() for x in norms)])

    def step(self) -> None:
        self.update_ema()
        alpha, beta = decide(self.sums(), self.problem.tau)
        if alpha != 1.0:
            torch._foreach_mul_(self.grads, alpha)
        if beta != 0.0:
            torch._foreach_add_(self.grads, self.ema, alpha=beta)


class Foreach(ForeachSync):
    name = "foreach"
    summary = "torch._foreach_*; no host sync, always the full work"

    def step(self) -> None:
        self.update_ema()
        alpha, beta = decide_on_device(self.sums(), self.problem.tau_tensor)
        torch._foreach_mul_(self.grads, alpha)
        if self.problem.device.type == "cpu":  # faster there than a temporary beta * e; on CUDA it leaves the fast path
            torch._foreach_addcmul_(self.grads, self.ema, [beta.to(self.problem.ema_dtype)] * len(self.ema))
        else:
            torch._foreach_add_(self.grads, torch._foreach_mul(self.ema, beta))


# ---- torch.compile ---------------------------------------------------------------------------------------------------


def _reduce(rows: Rows, gamma: float) -> torch.Tensor:
    sums = []
    for grad, retain, ema in rows:
        ema.copy_(torch.lerp(ema.float(), retain.float(), gamma))
        wide, wide_grad = ema.float(), grad.float()
        sums += [(wide_grad * wide).sum(), (wide * wide).sum(), (wide_grad * wide_grad).sum()]
    return total(sums)


def _apply(rows: Rows, alpha: torch.Tensor, beta: torch.Tensor) -> None:
    for grad, _, ema in rows:
        grad.copy_(alpha * grad.float() + beta * ema.float())


def _step(rows: Rows, gamma: float, tau: torch.Tensor) -> None:
    _apply(rows, *decide_on_device(_reduce(rows, gamma), tau))


def compiled(function: Callable[..., object], mode: str | None = None) -> Callable[..., object]:
    """torch.compile for fixed shapes. One function serves all problems of a run, so the limits on recompiling go up."""
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


class CompileLists(Form):
    name = "compile-lists"
    summary = "torch.compile over the lists, one graph, no host sync"
    compiled = True
    by_default = False
    mode: ClassVar[str | None] = None

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.rows = self.make_rows(problem)
        self.run = compiled(_step, self.mode)

    def make_rows(self, problem: Problem) -> Rows:
        return list_rows(problem)

    def step(self) -> None:
        self.run(self.rows, self.problem.gamma, self.problem.tau_tensor)


class CompileListsSync(CompileLists):
    name = "compile-lists-sync"
    summary = "torch.compile over the lists, two graphs, one host sync between"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.reduce, self.apply = compiled(_reduce), compiled(_apply)

    def step(self) -> None:
        sums = self.reduce(self.rows, self.problem.gamma)
        assert isinstance(sums, torch.Tensor)
        alpha, beta = decide(sums, self.problem.tau)
        if (alpha, beta) != (1.0, 0.0):
            self.apply(self.rows, *torch.tensor([alpha, beta], device=self.problem.device).unbind())


class FlatCompile(CompileLists):
    name = "flat-compile"
    summary = "one flat buffer; torch.compile, one graph, no host sync"
    by_default = True

    def make_rows(self, problem: Problem) -> Rows:
        return flat_rows(problem)


class FlatAutotune(FlatCompile):
    name = "flat-autotune"
    summary = "one flat buffer; torch.compile, one graph, mode max-autotune"
    by_default = False
    mode = "max-autotune"


class FlatCompileSync(CompileListsSync):
    name = "flat-compile-sync"
    summary = "one flat buffer; torch.compile, two graphs, one host sync between"
    by_default = True

    def make_rows(self, problem: Problem) -> Rows:
        return flat_rows(problem)


_FORMS: tuple[type[Form], ...] = (
    Official,
    Eager,
    Foreach,
    ForeachSync,
    CompileLists,
    CompileListsSync,
    FlatBlocked,
    FlatCompile,
    FlatAutotune,
    FlatCompileSync,
    Reference,
)
BASELINES: dict[str, type[Form]] = {form.name: form for form in _FORMS}
