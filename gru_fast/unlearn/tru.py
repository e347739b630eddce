"""Task vector rectified unlearning (TRU): the loop over the units of a forget set, without retain data.

    r     = grad R(D_u without s) at theta_org        the total gradient minus the unit's own
    T     = theta_s - theta_org                       theta_s: after some steps on unit s
    T~    = T + (max(-<T, r>, 0) / |r|^2) * r         <T~, r> >= 0: unlearning s does not raise R of the rest
    mean  = sum over s of T~ / |T~|, over their count

:mod:`gru_fast.vectors` has the pass of one unit, and says which of the paper's two formulas this is and why; here is
what leads to it. R is the mean of -log p over label tokens. r is only used for its direction, so the gradient of the
SUM over the rest's tokens serves: the sum over all rows, taken once, minus the unit's own, which is its first step's
gradient as well. In all that is one pass over the forget set and one backward pass for every step of every unit, n
(T + 1) for n units of T steps, and not n^2.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from gru_fast.core.vectors import TaskVectorStep
from gru_fast.data.sequences import Encoded
from gru_fast.runs import processes
from gru_fast.runs.progress import progress_bar
from gru_fast.unlearn.forget_set import ForgetSet, Store, copy_
from gru_fast.unlearn.task_vector import (
    TaskVector,
    check_source,
    load_tensors,
    save_tensors,
    source,
)
from gru_fast.unlearn.task_vector_options import TaskVectorOptions

TOTAL = "total.safetensors"


def units_of(num_rows: int, num_units: int | None = None, partition: str = "random", seed: int = 0) -> list[list[int]]:
    """Cuts rows 0..num_rows-1 into units, each row in one of them.

    Args:
        num_rows: of the forget set.
        num_units: how many; None: every row is a unit of its own.
        partition: "contiguous", blocks of num_rows // num_units rows of which the last takes the remainder too, as the
            public code cuts; "random", a random order of the rows cut the same way, where there is a ``num_units``.
        seed: of the random order.

    >>> units_of(5, 2, "contiguous")
    [[0, 1], [2, 3, 4]]
    """
    count = num_rows if num_units is None else num_units
    if not 1 <= count <= num_rows:
        raise ValueError(f"num_units: expected 1 to {num_rows}, the rows of the forget set, got {count}")
    order = list(range(num_rows))
    if partition == "random" and num_units is not None:
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    size = num_rows // count
    return [order[i * size : num_rows if i == count - 1 else (i + 1) * size] for i in range(count)]


def rectified(
    model: Any,
    rows: Sequence[Encoded],
    options: TaskVectorOptions,
    *,
    pad_token_id: int,
    state: str | Path | None = None,
    progress: bool = True,
) -> TaskVector:
    """The mean rectified task vector of a forget set; the model is theta_org before and after, bit for bit.

    Where ``torch.distributed`` is initialised the processes share the units and add up twice, the total gradient and
    the mean; each returns the same vector. Every process holds the whole model, and is given the same arguments.

    Args:
        model: a causal LM on its device; its trainable parameters make up the vector.
        rows: the forget set, tokenized.
        options: with method "tru".
        pad_token_id: for padding; never attended.
        state: a folder for what has been done, written every ``save_units`` units or ``save_minutes`` minutes; found
            there, it is gone on from, and gives the same vector bit for bit as without a stop. None: nothing is kept.
        progress: show progress bars.

    Returns:
        ``about`` has ``source``, ``units`` and how many were ``kept``, ``projected``, ``degenerate``, ``nonfinite``,
        ``steps`` in all, ``seconds_per_step`` (median; of those done since the last start), ``log`` (an entry a unit).

    Raises:
        ValueError: a ``state`` of another model, other rows, options, or another number of processes.
        RuntimeError: NaN or Inf in the total gradient, or no unit left.
    """
    loop = _Loop(model, rows, options, pad_token_id, None if state is None else Path(state), progress)
    loop.find_total()
    loop.run()
    return loop.result()


@dataclass
class _Done:
    """What one process has done: of its units in their order, the first ``count``. The sum is in the store."""

    count: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)


class _Loop:
    def __init__(
        self,
        model: Any,
        rows: Sequence[Encoded],
        options: TaskVectorOptions,
        pad_token_id: int,
        state: Path | None,
        progress: bool,
    ) -> None:
        if options.method != "tru":
            raise ValueError(
                f'method: expected "tru", got "{options.method}"; gru_fast.unlearn.task_vector has the other'
            )
        self.options = options
        self.rank, self.world = processes.here()
        self.units = units_of(len(rows), options.num_units, str(options.partition), options.seed)
        self.own_units = range(self.rank, len(self.units), self.world)
        self.forget = ForgetSet(model, rows, options, pad_token_id)
        self.source = {**source(model, rows, options), "processes": self.world}
        self.state = state
        self.progress = progress and self.rank == 0
        self.done = _Done()
        self.total: list[Tensor | None] | None = None
        self.store = Store(self.forget.params, self.forget.names, options.offload == "cpu")
        self._load()

    # ---- the total gradient ------------------------------------------------------------------------------------------

    def find_total(self) -> None:
        """Gradient of the sum of -log p over the whole forget set, computed, or read if it was kept."""
        if len(self.units) == 1:
            return  # there is no rest to rectify against
        kept = None if self.state is None else self.state / TOTAL
        # One process alone must not go and add up: they all have the file or they all compute.
        if all(processes.gather(kept is not None and kept.is_file())):
            tensors, about = load_tensors(str(kept))
            check_source(str(kept), about, self.source)
            found = [tensors.get(name) for name in self.forget.names]
            self.total = [
                None if grad is None else grad.to(origin.device)
                for grad, origin in zip(found, self.store.origin, strict=True)
            ]
            return
        rows = [row for unit in self.own_units for row in self.units[unit]]
        with self._bar(len(rows), "TRU: gradient of the whole", "row") as advance:
            grads, _ = self.forget.gradient(rows, advance) if rows else ([None] * len(self.forget.params), 0.0)
        self.total = self.store.place(grads)
        if self.world > 1:
            self.total = [_wide(grad, origin) for grad, origin in zip(self.total, self.store.origin, strict=True)]
            _add_up(self.total)
        pairs = zip(self.forget.names, self.total, strict=True)
        whole = {name: grad for name, grad in pairs if grad is not None}
        broken = next((name for name, grad in whole.items() if not bool(grad.isfinite().all())), None)
        if broken is not None:
            raise RuntimeError(
                f'the gradient of the forget set has NaN or Inf in "{broken}": the model has diverged, or its numbers '
                "do not fit float16 (use --dtype float32 or bfloat16)"
            )
        if kept is not None and self.rank == 0:
            save_tensors(kept, whole, self.source)

    # ---- units -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """This process's units that are left."""
        saved_at, saved_count = time.monotonic(), self.done.count
        with self._bar(len(self.own_units), "TRU: units", "unit") as advance:
            advance(self.done.count)
            for unit in self.own_units[self.done.count :]:
                self.done.log.append(self._unit(unit))
                self.done.count += 1
                advance(1)
                due = 0 < self.options.save_units <= self.done.count - saved_count
                if due or time.monotonic() - saved_at >= 60 * self.options.save_minutes:
                    self._save()
                    saved_at, saved_count = time.monotonic(), self.done.count
        if self.done.count > saved_count and self.world > 1:
            self._save()  # others may still be at theirs

    def _unit(self, index: int) -> dict[str, Any]:
        unit = self.units[index]
        began = time.monotonic()
        found, nll = self.forget.gradient(unit)
        own = self.store.place(found)
        del found
        optimizer = self.forget.optimizer()
        self.forget.step(optimizer, unit, own)
        for _ in range(1, int(self.options.steps or 1)):
            self.forget.step(optimizer, unit)
        del optimizer
        step = self.store.accumulate(self.total, None if self.total is None else own)
        return {"unit": index, "rows": len(unit), "loss": nll / self.forget.num_labels(unit), **_said(step),
                "seconds": round(time.monotonic() - began, 6)}  # fmt: skip

    def result(self) -> TaskVector:
        """The mean over all processes' units."""
        log = self.done.log
        if self.world > 1:
            _add_up(self.store.mean)
            log = sorted((entry for part in processes.gather(log) for entry in part), key=lambda x: int(x["unit"]))
        counts = {name: sum(entry[name] for entry in log) for name in ("projected", "degenerate", "nonfinite")}
        kept = len(log) - counts["degenerate"] - counts["nonfinite"]
        if not kept:
            raise RuntimeError(
                f"none of the {len(log)} units gave a task vector ({counts['nonfinite']} with NaN or Inf, "
                f"{counts['degenerate']} zero): try another --learning-rate"
            )
        for mean in self.store.mean:
            mean.div_(kept)
        steps = int(self.options.steps or 1)
        about = {
            "source": {name: value for name, value in self.source.items() if name != "processes"},
            "units": len(log),
            "kept": kept,
            **counts,
            "steps": steps * len(log),
            "seconds_per_step": statistics.median(entry["seconds"] for entry in log) / steps,
            "log": log,
        }
        return TaskVector({n: mean.cpu() for n, mean in zip(self.forget.names, self.store.mean, strict=True)}, about)

    # ---- going on after a stop ---------------------------------------------------------------------------------------

    def _file(self) -> Path | None:
        return None if self.state is None else self.state / f"units-{self.rank}.safetensors"

    def _save(self) -> None:
        file = self._file()
        if file is not None:
            tensors = dict(zip(self.forget.names, self.store.mean, strict=True))
            save_tensors(file, tensors, {**self.source, "done": {"count": self.done.count, "log": self.done.log}})

    def _load(self) -> None:
        file = self._file()
        if file is None or not file.is_file():
            return
        tensors, about = load_tensors(file)
        check_source(file, about, self.source)
        copy_(self.store.mean, [tensors[name] for name in self.forget.names])
        self.done = _Done(about["done"]["count"], about["done"]["log"])

    def _bar(self, total: int, text: str, unit: str) -> Any:
        text += f" (process 1 of {self.world})" if self.world > 1 else ""
        return progress_bar(total, text, unit=unit, shown=self.progress)


def _said(step: TaskVectorStep) -> dict[str, Any]:
    """What the log keeps of a unit; NaN, which JSON does not have, as None."""
    numbers = {"cos": step.cos, "norm": step.norm, "norm_rest": step.norm_rest, "norm_rectified": step.norm_rectified}
    flags = {"projected": step.projected, "degenerate": step.degenerate, "nonfinite": step.nonfinite}
    return {name: value if value - value == 0 else None for name, value in numbers.items()} | flags


# ---- several processes -----------------------------------------------------------------------------------------------


def _wide(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32) if grad is None else grad.float().contiguous()


def _add_up(tensors: Sequence[Tensor | None]) -> None:
    """Sums over the processes, in place."""
    for tensor in tensors:
        if tensor is not None:
            dist.all_reduce(tensor)


def about_units(about: Mapping[str, Any]) -> str:
    """One line on the units of a vector."""
    lost = [f"{about[name]} {name}" for name in ("degenerate", "nonfinite") if about[name]]
    return f"{about['kept']} of {about['units']} units, {about['projected']} projected" + "".join(
        f", {x}" for x in lost
    )
