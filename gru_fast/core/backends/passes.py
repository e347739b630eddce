"""What every backend offers: the passes of a step over the tensors of one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gru_fast.core.rules import GRU, Rule
from gru_fast.core.stats import NUM_GROUP_STATS

if TYPE_CHECKING:
    from gru_fast._core import TensorList

_GRU = GRU()


@dataclass(slots=True)
class StepArgs:
    """The scalars of one step: ``e <- keep * e + gain * r``, then the rule, clipped to ``tau``.

    Args:
        keep, gain: 1 - gamma and gamma over the loss scale; of a later micro-batch of a streamed step keep is 1.
        tau: largest |g| afterwards; inf: no clipping.
        rule: see :mod:`gru_fast.core.rules`.
        seed: of the rounding of a 16-bit e.
        all_or_nothing: NaN or Inf anywhere in g or r leaves every tensor as it is.
    """

    keep: float
    gain: float
    tau: float = math.inf
    rule: Rule = _GRU
    seed: int = 0
    all_or_nothing: bool = False


@dataclass
class Groups:
    """Which group each row is of, and what is known of the groups.

    Args:
        of_row: a number below ``count`` for each row.
        count: of the groups.
        device: where the passes have their statistics.
        stats: float64 of shape (count, NUM_GROUP_STATS) on that device; written.
    """

    of_row: list[int]
    count: int
    device: InitVar[torch.device | str] = "cpu"
    stats: Tensor = field(init=False)

    def __post_init__(self, device: torch.device | str) -> None:
        self.stats = torch.zeros(self.count, NUM_GROUP_STATS, dtype=torch.float64, device=device)


@dataclass
class Rows:
    """The tensors of one step, a row for each parameter; of sharded ones the parts that lie in this process.

    Args:
        grads: g; None counts as zeros.
        retain: r, likewise; None as a whole: there is none.
        ema: e.
        ema_is_current: whether e already holds this step's value, of all rows or of each.
        ids: what messages call the rows; by default their place.
        names: of the parameters, for messages.
        rounding_keys: what the rounding bits of a row are drawn by; by default the ids.
        known_ema: ``ema`` again, looked at before.
        groups: by row, where a rule is for each group of them; ``num_groups`` of them.
        is_direct: ``ema`` is r itself, current and only read: what a step without an average rectifies against.
    """

    grads: list[Tensor | None]
    retain: list[Tensor | None] | None
    ema: list[Tensor]
    ema_is_current: bool | list[bool] = False
    ids: list[int] | None = None
    names: Sequence[str] | None = None
    rounding_keys: list[int] | None = None
    known_ema: TensorList | None = None
    is_direct: bool = False
    groups: list[int] | None = None
    num_groups: int = 0

    def __len__(self) -> int:
        return len(self.ema)

    def select(self, rows: Sequence[int]) -> Rows:
        """Some of the rows; ids keep naming their place in the whole list."""

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return Rows(
            pick(self.grads),
            None if self.retain is None else pick(self.retain),
            pick(self.ema),
            self.ema_is_current if isinstance(self.ema_is_current, bool) else pick(self.ema_is_current),
            list(rows) if self.ids is None else pick(self.ids),
            None if self.names is None else pick(self.names),
            None if self.rounding_keys is None else pick(self.rounding_keys),
            is_direct=self.is_direct,
            groups=None if self.groups is None else pick(self.groups),
            num_groups=self.num_groups,
        )


class Passes(Protocol):
    """A step's rows on one device. Everything is checked when it is made: TypeError or ValueError names the culprit.

    ``rounding_step`` counts the steps of a 16-bit e, an int64 tensor on the device, and goes on by one; None: no e has
    16 bits.
    """

    stats: Tensor
    missing_grads: list[int]  # rows whose gradient is None

    def reduce(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        """``e <- keep * e + gain * r`` and the sums of the step."""

    def fold(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        """``e <- keep * e + gain * r`` alone; whether elements of r were refused is in the statistics."""

    def apply(self, args: StepArgs) -> None:
        """``g <- alpha * g + beta * e`` as the rule wants it for the sums; |g|^2 as written."""

    def finish(self, args: StepArgs) -> None:
        """Rescales g where that is needed, and completes the statistics."""

    def gate(self, args: StepArgs, *, is_first: bool) -> None:
        """An element-wise rule in place of :meth:`apply`; of :meth:`reduce` too if it ``is_first``."""

    def reduce_groups(self, groups: Groups) -> None:
        """The sums of each group, right after :meth:`reduce`."""

    def apply_groups(self, args: StepArgs, groups: Groups) -> None:
        """:meth:`apply`, with the rule for each group."""

    def finish_groups(self, args: StepArgs, groups: Groups) -> None:
        """:meth:`finish` after that."""

    def step(self, args: StepArgs, rounding_step: Tensor | None) -> None:
        """:meth:`reduce`, :meth:`apply` and :meth:`finish`."""
