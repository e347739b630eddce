"""What a step leaves behind: one float64 tensor, in the order of ``Stats`` in csrc/pipeline.h, and its names."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from gru_fast.core.load import core

NUM_STATS: int = core.NUM_STATS
NUM_GROUP_STATS: int = core.NUM_GROUP_STATS
NUM_SET_STATS: int = core.NUM_SET_STATS
MAX_VECTORS: int = core.MAX_VECTORS

# The inputs of the decision come first. Of several devices or processes they add up, WRITTEN after apply.
(
    DOT, EMA_NORM_SQ, GRAD_NORM_SQ, RETAIN_NONFINITE, VETOED, WRITTEN,
    ALPHA, BETA, RESCALE, OUT_NORM_SQ, CONFLICT, CLIPPED, DEGENERATE, GRAD_NONFINITE,
) = range(14)  # fmt: skip
SUMS = slice(DOT, VETOED + 1)
OUTCOME = slice(WRITTEN, GRAD_NONFINITE + 1)  # all that apply and finish write

# Of a group of parameters, as GroupStats in csrc/groups.h: DOT to GRAD_NORM_SQ, and
GROUP_ALPHA, GROUP_BETA, GROUP_CONFLICT, GROUP_OWN_NORM_SQ = range(3, 7)
GROUP_SUMS = slice(DOT, GRAD_NORM_SQ + 1)

# Of several vectors, as SetStats in csrc/sets.h: the fields above, and
SET_DOTS = slice(NUM_STATS, NUM_STATS + MAX_VECTORS)
SET_GRAM = slice(SET_DOTS.stop, SET_DOTS.stop + MAX_VECTORS * (MAX_VECTORS + 1) // 2)
SET_BETAS = slice(SET_GRAM.stop, SET_GRAM.stop + MAX_VECTORS)
SET_SIZE_SQ, SET_MEASURES = SET_BETAS.stop, SET_BETAS.stop + 1


def pair_at(i: int, j: int) -> int:
    """Where in ``SET_GRAM`` the pair i <= j is."""
    return j * (j + 1) // 2 + i


def of_nothing(device: torch.device | str = "cpu") -> Tensor:
    """The statistics of a step over no parameters."""
    stats = torch.zeros(NUM_STATS, dtype=torch.float64, device=device)
    stats[ALPHA] = stats[RESCALE] = 1.0
    return stats


class LazyStats:
    """Statistics that are fetched from their device when the first of them is read.

    Args:
        stats: float64, at least 14 values in the order of the core's ``Stats``; kept, not copied.
    """

    def __init__(self, stats: Tensor) -> None:
        self.stats = stats

    @cached_property
    def values(self) -> list[float]:
        """All of them. The first look synchronises with the device."""
        found: list[float] = self.stats.tolist()
        return found


def cosine(dot: float, norm_a: float, norm_b: float) -> float:
    """Cosine of two vectors by their dot product and norms; NaN where a norm is 0 or either vector holds NaN or Inf."""
    norms = norm_a * norm_b
    ratio = dot / norms if norms > 0.0 else math.nan
    return ratio if math.isnan(ratio) else max(-1.0, min(1.0, ratio))  # min(1, NaN) would be 1
