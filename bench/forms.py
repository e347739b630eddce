"""What every timed form of the step has in common, and gru_fast itself as one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from problem import Problem

import gru_fast
from gru_fast import _core


class Form(ABC):
    """One way to compute the step. Built once per problem (untimed), then `step()` is timed.

    `step` works in place on the problem's g and e, reads its r, `gamma` and `tau`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    compiled: ClassVar[bool] = False
    by_default: ClassVar[bool] = True
    stochastic: bool = False  # rounds a 16-bit EMA so

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @classmethod
    def working_bytes(cls, problem: Problem) -> int:
        """Host memory one step needs beyond g, r and e: a form that cannot fit is left out."""
        return 0

    @abstractmethod
    def step(self) -> None:
        """One step on the problem's tensors."""

    def reset(self) -> None:  # noqa: B027 - most forms have nothing to do here
        """Called after the problem's g and e were put back: forms with state of their own follow."""

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat g and e after a step."""
        return self.problem.flat_grad, self.problem.flat_ema


class GruFast(Form):
    name = "gru_fast"
    summary = "gru_fast.rectify_ on a list of parameters"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.stochastic = problem.ema_dtype != torch.float32  # a 16-bit EMA is rounded stochastically
        self.params = parameters_with(problem.grads)

    def step(self) -> None:
        problem = self.problem
        gru_fast.rectify_(self.params, problem.ema, problem.gamma, problem.tau, retain_grads=problem.retain)


class Probe:
    """The memory traffic of the step and nothing else, over the same tensors: the floor every form is held against."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.table = _core.Table(problem.grads, problem.retain, problem.ema)
        self.stats = torch.empty(_core.NUM_STATS, dtype=torch.float64, device=problem.device)
        self.scratch = torch.empty(self.table.scratch_bytes, dtype=torch.uint8, device=problem.device)

    def step(self) -> None:
        self.table.probe(self.problem.case == "full", self.stats, self.scratch, torch.get_num_threads())


def parameters_with(grads: list[torch.Tensor]) -> list[torch.nn.Parameter]:
    """Parameters whose `.grad` are `grads`. Their own values are never read: each is one element, expanded."""
    params = []
    for grad in grads:
        param = torch.nn.Parameter(torch.zeros((), dtype=grad.dtype, device=grad.device).expand(grad.shape))
        param.grad = grad
        params.append(param)
    return params
