"""How LoRA starts: one factor of each pair is zero, so that the other has no gradient yet, nor, if none comes, ever."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from gru_fast.core.sharded.shards import local, shards_of
from gru_fast.models.adapters import is_drawn_factor, is_zero_factor
from gru_fast.models.partitioned import piece_of


class LoraStart(TrainerCallback):
    """Stops a run whose new LoRA adapters stay at zero in the first step; warns of those that do where others move.

    LoRA adds B A, and B starts at zero: a B that gets no gradient stays there, and its adapter does nothing however
    long it is trained. Nothing else would say so (open-unlearning's issue 178: checkpointing with ``use_reentrant`` of
    layers whose inputs need no gradient). Looked at once, after the first step that was applied with a learning rate
    above 0.

    Args:
        reduce: sums an int64 tensor over the processes, all of which must then call it.
        was_skipped: whether the step that has just ended was not applied.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], was_skipped: Callable[[], bool]) -> None:
        self._reduce, self._was_skipped = reduce, was_skipped
        self._zero: dict[str, nn.Parameter] = {}
        self._rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        factors = {name: p for name, p in model.named_parameters() if p.requires_grad and is_zero_factor(name)}
        self._zero = {name: factors[name] for name in self._at_zero(factors)}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if self._zero:
            self._rate = max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._zero or self._rate == 0.0 or self._was_skipped():
            return
        still, count = self._at_zero(self._zero), len(self._zero)
        self._zero = {}
        if len(still) == count:
            raise RuntimeError(
                f"LoRA: after step {state.global_step} all {count} factors that start at zero are still there "
                f"({still[0]}, ...): no gradient reaches the adapters, and the model does not change. With activation "
                "checkpointing give use_reentrant: false, or call model.enable_input_require_grads(); else see whether "
                "the optimizer has the adapters' parameters"
            )
        if still:
            warnings.warn(
                f"LoRA: after step {state.global_step} {len(still)} of {count} factors that start at zero are still "
                f"there ({still[0]}, ...): no gradient has reached these adapters. That is as it should be for experts "
                "that no token went to, and for nothing else",
                RuntimeWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def _at_zero(self, params: dict[str, nn.Parameter]) -> list[str]:
        """Names of those that are zero in all processes."""
        if not params:
            return []
        moved = torch.stack([piece_of(param).ne(0).any() for param in params.values()])
        total = self._reduce(moved.to(torch.int64)).tolist()
        return [name for name, count in zip(params, total, strict=True) if count == 0]


class LoraShare:
    """How much of a gradient is of the factors that LoRA draws at random, its A: 0 while B is zero.

    The gradient of A is B^T times something: in the first step it is exactly zero, in both losses, and the cosine
    between their gradients speaks of B alone.

    Args:
        params: with names; of parameters cut up in a row (DeepSpeed ZeRO-1 and 2) there are none to be told apart.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]]) -> None:
        named = [(name, param) for name, param in params if param.requires_grad]
        self._params = [param for _, param in named]
        self._drawn = {row for row, (name, _) in enumerate(named) if is_drawn_factor(name)}
        self._shards = shards_of(self._params)
        self._rows: dict[int, list[int]] = {}  # whose squares this process brings, by where it brings them
        for row in range(len(self._params)):
            place = 0 if self._shards is None else self._shards.counted_in[row]
            if place is not None:
                self._rows.setdefault(place, []).append(row)

    def __bool__(self) -> bool:
        """Whether there are such factors."""
        return bool(self._drawn)

    @torch.no_grad()
    def of_gradient(self) -> Tensor:
        """|g of A|^2 / |g|^2, float64, 0 where there is no gradient. Of shards, every process must ask."""
        brought = {place: self._squares(rows) for place, rows in self._rows.items()}
        nothing = self._squares([])
        total = brought[0] if self._shards is None else self._shards.add_up(brought, nothing)
        return torch.where(total[1] > 0, total[0] / total[1], nothing[0])

    def _squares(self, rows: Iterable[int]) -> Tensor:
        """|g of A|^2 and |g|^2 of what of these lies in this process, (2,)."""
        there = [row for row in rows if self._params[row].grad is not None]
        drawn, others = [row for row in there if row in self._drawn], [row for row in there if row not in self._drawn]
        of_a, of_others = self._square(drawn), self._square(others)
        return torch.stack([of_a, of_a + of_others])

    def _square(self, rows: list[int]) -> Tensor:
        if not rows:
            return torch.zeros((), dtype=torch.float64, device=local(self._params[0]).device)
        grads: list[Any] = [self._params[row].grad for row in rows]
        # Not norm(), which loses digits on long tensors on the CPU (findings/torch_cpu_norms_of_long_vectors.sh).
        return torch.stack([local(grad).float().square().sum().double() for grad in grads]).sum()
