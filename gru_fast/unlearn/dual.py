"""``DualVariable``: the weight of a constraint of a method, which follows how well the constraint is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gru_fast.runs.files import write_text
from gru_fast.unlearn.methods import Method

DUAL = "dual.json"  # in each checkpoint


class DualVariable:
    """What ``Batch.dual`` is in a run. ``value`` changes between steps only, alike in all processes.

    Args:
        method: one with ``has_dual``.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self.value = method.first_dual()
        self._losses: list[Tensor] = []  # retain NLL of this step's micro-batches

    def see(self, retain_nll: Tensor) -> None:
        """Takes in the mean retain NLL of a micro-batch, a scalar."""
        self._losses.append(retain_nll.detach().float())

    def forget(self) -> None:
        """Gives up the step in progress."""
        self._losses = []

    def step(self, epoch: int, mean: Callable[[Tensor], Tensor]) -> None:
        """After an optimizer step. ``mean``: over the processes. NaN and Inf change nothing."""
        found = float(mean(torch.stack(self._losses).mean()))
        self._losses = []
        if math.isfinite(found):
            self.value = self._method.next_dual(self.value, found, epoch)

    def save(self, folder: str | Path) -> None:
        """Writes it into a checkpoint."""
        write_text(Path(folder) / DUAL, json.dumps({"method": self._method.name, "dual": self.value}))

    def load(self, folder: str | Path) -> None:
        """Reads what :meth:`save` wrote, to the bit.

        Raises:
            FileNotFoundError: the checkpoint has none. ValueError: not such a file.
        """
        path = Path(folder) / DUAL
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; the checkpoint was not saved by {self._method.name} (or with save_only_model): "
                "resume it as it was, or start anew"
            )
        try:
            self.value = float(json.loads(path.read_text(encoding="utf-8"))["dual"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected what {self._method.name} saves, got something else ({error!r})"
            ) from error
