"""What the passes of AdamW work on, whoever does them: the tensors of one device, and the scalars of a step.

The formulas, and what each pass reads and writes, are in csrc/optim.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from gru_fast.core.rules import Rule

Pass = Literal["step", "moments", "update", "sums"]
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, BIAS1, BIAS2_ROOT, STEP = range(8)  # columns of AdamWArgs.scalars


@dataclass
class AdamWRows:
    """A row for each parameter that moves; of sharded ones the parts that lie in this process.

    Args:
        params: theta, written.
        grads: g, of the parameter's dtype; None counts as zeros.
        exp_avg, exp_avg_sq: M and V, float32, or bfloat16 beside a bfloat16 parameter; written.
        ema: e, float32 or the parameter's dtype; None, as an entry or as the list, counts as zeros.
        names: of the parameters, for messages.
        rounding_keys: what the rounding bits of a row are drawn by; by default its place.
    """

    params: list[Tensor]
    grads: list[Tensor | None]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    ema: list[Tensor | None] | None = None
    names: Sequence[str] | None = None
    rounding_keys: list[int] | None = None


@dataclass
class AdamWArgs:
    """The scalars of one step; tensors are float64 and lie on the device of the rows.

    Args:
        scalars: (rows, 8), the columns named above. bias1 is 1 - beta1^step, bias2_root sqrt(1 - beta2^step).
        stats: of the step (:mod:`gru_fast.core.stats`), settled: alpha, beta and |e|^2 are read; None: g as it is.
        update: the sums of U (:mod:`gru_fast.core.update`), written by "moments" and "sums", read by "update" and
            "step"; None: a "step" is made as it is.
        floor: rms(D) of the step before, (1,); None: the Euclidean metric.
        seed: of the rounding of 16-bit tensors.
        numel: elements of e over all devices and processes.
        feed_back: M takes its part of the correction.
        write_grad: the rectified gradient is left in g.
        maximize: climb.
    """

    scalars: Tensor
    stats: Tensor | None = None
    update: Tensor | None = None
    floor: Tensor | None = None
    seed: int = 0
    numel: int = 0
    feed_back: bool = False
    write_grad: bool = False
    maximize: bool = False


class AdamWPasses(Protocol):
    """The passes over the rows of one device. Everything is checked when it is made, and messages name the culprit."""

    def run(self, which: Pass, args: AdamWArgs) -> None:
        """``moments``: M, V, the sums of U. ``update``: theta, by those. ``sums``: they only. ``step``: M, V, theta, by
        the sums if there are any; where U is not finite nothing.
        """

    def settle(self, args: AdamWArgs, tau: float, rule: Rule | None) -> None:
        """Completes ``args.stats``, as apply and finish of a step by ``rule`` would, where the host must not ask.

        None: g is clipped to ``tau`` alone.
        """
