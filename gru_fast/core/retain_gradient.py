"""The retain gradient of one step, for rules that rectify against r itself: nothing outlives the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.average import Average
from gru_fast.core.checks import check_share
from gru_fast.core.saved_state import FORMAT
from gru_fast.core.sharded.shards import local
from gru_fast.core.step import StepInProgress


class RetainGradient:
    """The retain gradient r of each step, in place of its average: :class:`gru_fast.RetainEMA` without an e.

    Args:
        params: as of a RetainEMA.

    A step reads g and r and writes g: 20 bytes a parameter in float32, 10 in 16 bits, and no memory beyond r, where an
    e that is r (gamma = 1) would take 28 (14) and its own memory.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> retain = RetainGradient([w])
    >>> with retain.collect():
    ...     (w * torch.tensor([0.0, 2.0])).sum().backward()
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> step = gru_fast.rectify_([w], retain, rule="pcgrad")
    >>> w.grad
    tensor([1., 2.])
    """

    def __init__(self, params: Iterable[nn.Parameter | Tensor | tuple[str, nn.Parameter | Tensor]]) -> None:
        self._average = Average.not_kept(params)
        self._pending = StepInProgress(self._average)
        self._step = 0

    # ---- what it holds -----------------------------------------------------------------------------------------------

    @property
    def params(self) -> list[Tensor]:
        """The parameters it follows, in order."""
        return list(self._average.params)

    @property
    def tensors(self) -> list[Tensor]:
        """The e of the parameters, of which there is none."""
        return []

    @property
    def names(self) -> list[str] | None:
        """Their names, if it was made from ``named_parameters()``."""
        names = self._average.names
        return None if names is None else list(names)

    @property
    def devices(self) -> list[torch.device]:
        """The devices they lie on."""
        return self._average.devices

    @property
    def step(self) -> int:
        """Number of steps :func:`gru_fast.rectify_` has ended."""
        return self._step

    @property
    def pending_nbytes(self) -> int:
        """Bytes of the retain gradients of the step in progress."""
        here = (local(r) for r in self._pending.retain or () if r is not None)
        return sum(r.numel() * r.element_size() for r in here)

    def __len__(self) -> int:
        return len(self._average.params)

    def __repr__(self) -> str:
        elements = sum(p.numel() for p in self._average.params)
        return f"{type(self).__name__}({len(self)} parameters, {elements:,} elements, {self._step} steps)"

    # ---- a step ------------------------------------------------------------------------------------------------------

    @contextmanager
    def collect(self, scale: Any = None, *, share: float = 0.0) -> Iterator[RetainGradient]:
        """As :meth:`gru_fast.RetainEMA.collect`. With a ``scale`` r is unscaled in place when the step ends."""
        with self._pending.collecting(scale, check_share(share)):
            yield self

    def discard(self) -> None:
        """Gives up the step in progress, for example after an error in backward. It does not count."""
        self._pending.check_outside("discard")
        self._pending = StepInProgress(self._average)

    # ---- for rectify_ ------------------------------------------------------------------------------------------------

    @property
    def average(self) -> Average:
        """What a step works on."""
        return self._average

    @property
    def pending(self) -> StepInProgress:
        """The step in progress."""
        return self._pending

    def end_step(self) -> None:
        """The step in progress is over, and counts."""
        self._pending = StepInProgress(self._average)
        self._step += 1

    # ---- keeping it --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of steps: there is nothing else to go on with."""
        return {"format": FORMAT, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; one of a RetainEMA serves too, whose e is left."""
        if "step" not in state:
            raise ValueError(f"state_dict: expected the keys of RetainGradient.state_dict(), got {sorted(state)}")
        self._step = int(state["step"])

    def __getstate__(self) -> Any:
        raise TypeError("RetainGradient: cannot be copied or pickled, since it belongs to its parameters")
