"""What AdamW's passes say of the update U: their sums, and the decision about it. csrc/optim.h is the same for kernels.

Over all parameters as one vector, with lr the learning rate of each one's group and e the average retain gradient::

    q = sum lr U e,    K = sum lr e^2 / W,    W = 1 or D + rms(D)
    Z = U + lambda e / W  with  lambda = max(0, -q) / K,    theta <- theta - lr Z
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gru_fast.core.load import core

NUM_UPDATE_STATS: int = core.NUM_UPDATE_STATS

# Sums, which add up over devices and processes, and the largest of |e| / W.
DOT, STEP_NORM_SQ, EMA_NORM_SQ, REACH, CHANGE_SQ, DENOMINATOR_SQ, NUMEL, LARGEST = range(8)
SUMS = slice(DOT, NUMEL + 1)


def update_factor(update: Sequence[float]) -> float:
    """lambda: 0 where the update does not raise the retain loss to first order, or nothing can be said of it.

    >>> update_factor([-2.0, 1.0, 1.0, 4.0])
    0.5
    """
    dot, reach = update[DOT], update[REACH]
    conflict = -math.inf < dot < 0.0 < reach < math.inf
    return -dot / reach if conflict else 0.0


def is_finite_update(update: Sequence[float]) -> bool:
    """Whether U is a number everywhere; else theta is left as it is."""
    return update[STEP_NORM_SQ] < math.inf
