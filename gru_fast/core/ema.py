"""The moving average of retain gradients: how retain gradients come in, without a copy and without a second set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.average import Average
from gru_fast.core.checks import check_gamma, check_share
from gru_fast.core.folding import Exchange
from gru_fast.core.saved_state import FORMAT, check_state
from gru_fast.core.sharded.shards import global_like, is_sharded, local, take_over
from gru_fast.core.step import StepInProgress


class RetainEMA:
    """EMA of the retain gradients of a model: ``e <- (1 - gamma) * e + gamma * r``, ``e(0) = 0`` (paper Eq. 9).

    Args:
        params: the parameters, or ``(name, parameter)`` pairs (``model.named_parameters()``; names then appear in
            messages and are checked on load). Those with ``requires_grad=False`` are left out; a parameter listed twice
            (tied weights) is counted once.
        dtype: of e. ``None`` or ``torch.float32``: float32 throughout. ``torch.bfloat16`` or ``torch.float16``: that
            dtype for the parameters that have it, float32 for the others; a 16-bit e is rounded stochastically, since
            round-to-nearest would freeze it at small gamma.
        seed: of that rounding. Same seed, step and element: same bits, whatever the number of threads.

    One e per parameter, in its shape, memory layout and device; of a sharded parameter (DTensor) each process has the
    part that goes with its shard.

    >>> model = torch.nn.Linear(2, 1)
    >>> ema = RetainEMA(model.named_parameters())
    >>> with ema.collect():
    ...     model(torch.ones(3, 2)).mean().backward()
    >>> ema
    RetainEMA(2 parameters, 3 elements, float32, 0 steps)
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter | Tensor | tuple[str, nn.Parameter | Tensor]],
        dtype: torch.dtype | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._average = Average.zeros(params, dtype, int(seed))
        self._pending = StepInProgress(self._average)
        self._step = 0

    # ---- what it holds -----------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The e of each parameter, sharing memory with this object; modified in place by every step."""
        parts = (e.detach() for e in self._average.tensors)
        return [global_like(p, e) if is_sharded(p) else e for p, e in zip(self._average.params, parts, strict=True)]

    @property
    def params(self) -> list[Tensor]:
        """The parameters it follows, in order."""
        return list(self._average.params)

    @property
    def names(self) -> list[str] | None:
        """Their names, if it was made from ``named_parameters()``."""
        names = self._average.names
        return None if names is None else list(names)

    @property
    def devices(self) -> list[torch.device]:
        """The devices e lies on."""
        return self._average.devices

    @property
    def step(self) -> int:
        """Number of steps :func:`gru_fast.rectify_` has ended."""
        return self._step

    @property
    def nbytes(self) -> int:
        """Bytes of e in this process."""
        return sum(e.numel() * e.element_size() for e in self._average.tensors)

    @property
    def pending_nbytes(self) -> int:
        """Bytes of retain gradients collected and not yet folded into e (0 with :meth:`stream`)."""
        here = (local(r) for r in self._pending.retain or () if r is not None)
        return sum(r.numel() * r.element_size() for r in here)

    def __len__(self) -> int:
        return len(self._average.params)

    def __repr__(self) -> str:
        dtypes = sorted({str(e.dtype).removeprefix("torch.") for e in self._average.tensors})
        elements = sum(p.numel() for p in self._average.params)
        return (
            f"{type(self).__name__}({len(self)} parameters, {elements:,} elements, {' and '.join(dtypes) or 'empty'}, "
            f"{self._step} steps)"
        )

    # ---- retain gradients in -----------------------------------------------------------------------------------------

    @contextmanager
    def collect(self, scale: Any = None, *, share: float = 0.0) -> Iterator[RetainEMA]:
        """Inside, ``backward()`` accumulates retain gradients; outside, ``.grad`` is what it was. Nothing is copied.

        (Only views into the buckets of DistributedDataParallel are, since the next backward overwrites them.)

        Enter it once per micro-batch: the gradients add up until :func:`gru_fast.rectify_` takes them. ``scale``: what
        the loss was multiplied with (a number, or a ``torch.amp.GradScaler``, whose ``get_scale()`` syncs on CUDA); e
        holds unscaled gradients. With a scale a step is all or nothing: NaN or Inf in any gradient leaves e and g
        untouched. The scaler itself sees only g; where it was r that overflowed, lower its scale::

            before = scaler.get_scale()
            scaler.update()
            if step.skipped and scaler.get_scale() >= before:
                scaler.update(before / 2)

        An exception inside discards what the step had collected.

        ``share``: for an objective that contains ``share`` times this very retain loss. By the time ``rectify_`` looks
        at it, g has ``share`` times the retain gradient added, unscaled: leave that term out of the unlearning loss and
        save its forward and backward pass. The same in every micro-batch of a step.
        """
        with self._pending.collecting(scale, check_share(share)):
            yield self

    @contextmanager
    def stream(
        self, gamma: float, scale: Any = None, *, share: float = 0.0, exchange: Exchange | None = None
    ) -> Iterator[RetainEMA]:
        """As :meth:`collect`, but each retain gradient goes into e as backward produces it, and is freed at once.

        The retain gradient never exists as a whole: peak memory is parameters + e + one set of gradients. Over several
        micro-batches of a step e decays once. ``rectify_`` ends the step and must be given the same ``gamma``.

        What has been folded in cannot be taken back: NaN and Inf are refused element by element, also with a ``scale``
        (unlike :meth:`collect`, where such a step is all or nothing), and an exception inside leaves a step begun,
        which ``rectify_`` or :meth:`discard` ends. For float16 with a loss scaler prefer :meth:`collect`. Works with
        FSDP2, which has reduced a gradient over the processes when it comes here. DistributedDataParallel does so
        later: within its ``no_sync()``, with an ``exchange`` that does it here.

        ``share``: as for :meth:`collect`, but it may differ between micro-batches, and g has its share (of the gradient
        as backward gives it, scaled or not) when the block is left.

        ``exchange``: brings the gradients of the processes together, such as
        :class:`gru_fast.unlearn.engines.ddp.MeanOverProcesses`; a new one for each block, of one backward pass.
        """
        with self._pending.streaming(check_gamma(gamma), scale, check_share(share), exchange):
            yield self

    # ---- for rectify_ ------------------------------------------------------------------------------------------------

    @property
    def average(self) -> Average:
        """What a step works on: e as it lies in this process."""
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

    @torch.no_grad()
    def reset(self) -> None:
        """Back to ``e(0) = 0``: forgets everything, pending retain gradients included."""
        average = self._average
        for ema in average.tensors:
            ema.zero_()
        average.see([False] * len(average.params))
        average.replaced(average.tensors, [])
        self._pending = StepInProgress(average)
        self._step = 0

    def discard(self) -> None:
        """Gives up the step in progress, for example after an error in backward: what it had collected is dropped.

        What :meth:`stream` has folded into e stays there. The step does not count.
        """
        self._pending.check_outside("discard")
        self._pending = StepInProgress(self._average)

    def to(self, device: torch.device | str | int) -> RetainEMA:
        """Moves e to ``device`` (it must lie where the gradients do). Returns itself."""
        self._expect_between_steps("to")
        average = self._average
        average.replaced([e.to(device) for e in average.tensors], self._rounding_steps())
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything a later run needs to go on bit for bit: call it between steps. Tensors are not copied.

        The e of a sharded parameter is a DTensor: with ``torch.distributed.checkpoint`` (which takes this object as it
        takes a model) another number of processes can load it. ``torch.save`` writes the shards of one process.
        """
        self._expect_between_steps("state_dict")
        return {
            "format": FORMAT,
            "ema": self.tensors,
            "names": self.names,
            "seen": list(self._average.seen),
            "step": self._step,
            "seed": self._average.seed,
            "rounding_steps": self._rounding_steps(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state. Checks everything (number, names, shapes, dtypes) before it changes anything.

        Its e may be sharded in another way than the parameters here, or not at all.
        """
        self._expect_between_steps("load_state_dict")
        average = self._average
        check_state(state, average.names, average.tensors, [param.shape for param in average.params])
        for ours, theirs, param in zip(average.tensors, state["ema"], average.params, strict=True):
            take_over(ours, theirs, param)
        average.see([bool(seen) for seen in state["seen"]])
        average.seed = int(state["seed"])
        average.replaced(average.tensors, [int(value) for value in state["rounding_steps"]])
        self._step = int(state["step"])

    def __getstate__(self) -> Any:
        raise TypeError("RetainEMA: cannot be copied or pickled, since it belongs to its parameters; save state_dict()")

    def _rounding_steps(self) -> list[int]:
        """One per device that holds a 16-bit e."""
        return [int(value) for value in self._average.rounding.values()]

    def _expect_between_steps(self, what: str) -> None:
        if self._pending.is_begun:
            raise RuntimeError(f"{what}: this step's retain gradients are still pending; call it after rectify_")
