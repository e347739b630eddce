"""16-bit weights whose steps are rounded away: said before training, by the learning rate, and counted after it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from gru_fast.core.sharded.shards import local
from gru_fast.unlearn.config import GRU_ADAMW

_SAMPLES = 65_536  # elements that are looked at, of all parameters together: so many at least, if there are
_MUCH = 0.5  # share of the weights from which on it is worth a warning
_STEPS_BY_RATE = re.compile(r"adam|lion", re.IGNORECASE)  # optimizers whose step is about the learning rate


class LostSteps(TrainerCallback):
    """Warns where half of the 16-bit weights are too coarse for a step of the learning rate's size (where the
    optimizer rounds to nearest); logs ``weights_changed``, the share of them that training has changed, at its end.
    Nothing of either in float32.

    A weight of bfloat16 has 8 significant bits, one of float16 11: a step below half of the distance to its neighbour
    is rounded away, and the next one too. Both numbers are of a sample, spread evenly over the parameters of this
    process.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._params: list[Tensor] = []
        self._before: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._params = [param for param in model.parameters() if param.requires_grad and param.element_size() == 2]
        self._before = sample(self._params)
        if not self._before or not _STEPS_BY_RATE.search(str(args.optim)) or args.optim == GRU_ADAMW:
            return  # the last of which rounds stochastically, and loses none
        share = share_below_spacing(self._before, args.learning_rate)
        if share > _MUCH:
            dtype = str(self._params[0].dtype).removeprefix("torch.")
            warnings.warn(
                f"learning_rate {args.learning_rate:g}: a step of that size is rounded away in {share:.0%} of the "
                f"{dtype} weights; train in float32 (leave --dtype out; --bf16 computes in bfloat16 all the same), or "
                "with LoRA, or take a larger one",
                RuntimeWarning,
                stacklevel=2,
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._before:
            self._log({"weights_changed": changed(self._before, sample(self._params))})
        self._params, self._before = [], []


@torch.no_grad()
def sample(params: Iterable[Tensor]) -> list[Tensor]:
    """Copies of every n-th element of each, (m,), its first one too; n is the same for all."""
    flat = [local(param).detach().reshape(-1) for param in params]
    every = max(1, sum(tensor.numel() for tensor in flat) // _SAMPLES)
    return [tensor[::every].clone() for tensor in flat]


@torch.no_grad()
def share_below_spacing(weights: Iterable[Tensor], step: float) -> float:
    """Of all elements, the share from which ``step`` rounds back to where it was, up and down."""
    lost = total = 0
    for weight in weights:
        wide = weight.double()
        still = ((wide + step).to(weight.dtype) == weight) & ((wide - step).to(weight.dtype) == weight)
        lost, total = lost + int(still.sum()), total + weight.numel()
    return lost / total if total else 0.0


def changed(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Of all elements, the share that differs."""
    pairs = list(zip(before, after, strict=True))
    total = sum(a.numel() for a, _ in pairs)
    return sum(int((a != b).sum()) for a, b in pairs) / total if total else 0.0
