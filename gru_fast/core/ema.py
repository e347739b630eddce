"""The moving average of retain gradients: how retain gradients come in, without a copy and without a second set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.average import Average
from gru_fast.core.checks import check_gamma, check_share
from gru_fast.core.folding import Exchange
from gru_fast.core.saved_state import FORMAT, FORMAT_KEPT, check_state
from gru_fast.core.sharded.shards import global_like, is_sharded, local, take_over
from gru_fast.core.stats import MAX_VECTORS
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
        sets: how many retain sets are kept apart, each with an average of its own; with gradients that :meth:`keep` has
            kept at most 8. The rules for several (:class:`gru_fast.rules.GEM`, :class:`~gru_fast.rules.Subspace`) then
            see to each of them. Every set costs an e.

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
        sets: int = 1,
    ) -> None:
        self._averages = Average.zeros_of_sets(params, dtype, int(seed), _check_sets(sets))
        self._pendings = [StepInProgress(average) for average in self._averages]
        self._kept: list[list[Tensor]] = []
        self._step = 0

    # ---- what it holds -----------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The e of each parameter, sharing memory with this object; modified in place by every step.

        Of several sets those of the first come first, then all of the second, and so on.
        """
        return [e for average in self._averages for e in self._laid_out(average.tensors)]

    @property
    def sets(self) -> int:
        """How many retain sets are kept apart."""
        return len(self._averages)

    @property
    def kept(self) -> list[list[Tensor]]:
        """The gradients that :meth:`keep` has kept, each one per parameter, sharing memory with this object."""
        return [self._laid_out(gradient) for gradient in self._kept]

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
        """Bytes of e in this process, of all sets, and of what was kept."""
        lists = [*(average.tensors for average in self._averages), *self._kept]
        return sum(e.numel() * e.element_size() for tensors in lists for e in tensors)

    @property
    def pending_nbytes(self) -> int:
        """Bytes of retain gradients collected and not yet folded into e (0 with :meth:`stream`)."""
        here = (local(r) for pending in self._pendings for r in pending.retain or () if r is not None)
        return sum(r.numel() * r.element_size() for r in here)

    def __len__(self) -> int:
        return len(self._average.params)

    def __repr__(self) -> str:
        dtypes = sorted({str(e.dtype).removeprefix("torch.") for e in self._average.tensors})
        elements = sum(p.numel() for p in self._average.params)
        sets = f"{self.sets} sets, " if self.sets > 1 else ""
        kept = f"{len(self._kept)} kept, " if self._kept else ""
        return (
            f"{type(self).__name__}({len(self)} parameters, {elements:,} elements, {' and '.join(dtypes) or 'empty'}, "
            f"{sets}{kept}{self._step} steps)"
        )

    # ---- retain gradients in -----------------------------------------------------------------------------------------

    @contextmanager
    def collect(self, scale: Any = None, *, share: float = 0.0, set: int = 0) -> Iterator[RetainEMA]:  # noqa: A002
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

        ``set``: which of the retain sets the gradient is of. One that has none in a step keeps its e as it is.
        """
        with self._pending_of(set, "collect").collecting(scale, check_share(share)):
            yield self

    @contextmanager
    def stream(
        self,
        gamma: float,
        scale: Any = None,
        *,
        share: float = 0.0,
        set: int = 0,  # noqa: A002
        exchange: Exchange | None = None,
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
        as backward gives it, scaled or not) when the block is left. ``set``: as for :meth:`collect`.

        ``exchange``: brings the gradients of the processes together, such as
        :class:`gru_fast.unlearn.engines.ddp.MeanOverProcesses`; a new one for each block, of one backward pass.
        """
        with self._pending_of(set, "stream").streaming(check_gamma(gamma), scale, check_share(share), exchange):
            yield self

    @contextmanager
    def keep(self) -> Iterator[RetainEMA]:
        """Inside, ``backward()`` gives a gradient that is kept as it is, beside the averages of the sets.

        For gradients that shall not be gone against in any later step: of what an earlier request to forget has
        changed (ONPO), of capabilities measured once (OGPSA). Accumulates over several backward passes. A parameter
        without a gradient has zeros in it. It takes memory as the gradient does, is part of :meth:`state_dict`, and
        counts among the at most 8 vectors. Outside, ``.grad`` is what it was.
        """
        self._expect_between_steps("keep")
        room = MAX_VECTORS - self.sets - len(self._kept)
        if room < 1:
            raise ValueError(
                f"keep: expected at most {MAX_VECTORS} sets and kept gradients together, got {self.sets} and "
                f"{len(self._kept) + 1}; drop_kept() makes room"
            )
        pending = StepInProgress(self._average)
        with pending.collecting(None, 0.0):
            yield self
        retain: list[Tensor | None] = list(pending.retain or [None] * len(self))
        parts = self._average.sharded.parts(retain, "retain_grads")
        is_there = any(r is not None for r in parts)
        is_finite = all(r is None or bool(r.isfinite().all()) for r in parts)
        shards = self._average.sharded.shards
        if shards is not None:  # all processes keep it, or none
            is_there, is_finite = shards.any(is_there), not shards.any(not is_finite)
        if not (is_there and is_finite):
            raise ValueError(f"keep: expected a gradient of finite numbers, got {'NaN or Inf' if is_there else 'none'}")
        self._average.note(parts)
        with torch.no_grad():
            self._kept.append(
                [torch.zeros_like(local(p)) if r is None else r for r, p in zip(parts, self.params, strict=True)]
            )

    def drop_kept(self, count: int | None = None) -> None:
        """Drops the ``count`` oldest gradients that :meth:`keep` has kept, or all of them."""
        self._expect_between_steps("drop_kept")
        del self._kept[:count]

    # ---- for rectify_ ------------------------------------------------------------------------------------------------

    @property
    def average(self) -> Average:
        """What a step works on: e, of the first set, as it lies in this process."""
        return self._average

    @property
    def averages(self) -> list[Average]:
        """The same of every set."""
        return list(self._averages)

    @property
    def vectors(self) -> list[list[Tensor]]:
        """What rules for several vectors are given: e of every set, then what was kept, as they lie in this process."""
        return [*(average.tensors for average in self._averages), *self._kept]

    @property
    def has_several(self) -> bool:
        """Whether that is more than one e."""
        return len(self._averages) + len(self._kept) > 1

    @property
    def pending(self) -> StepInProgress:
        """The step in progress, of the first set."""
        return self._pendings[0]

    @property
    def pendings(self) -> list[StepInProgress]:
        """The same of every set."""
        return list(self._pendings)

    def end_step(self) -> None:
        """The step in progress is over, and counts."""
        self._begin_anew()
        self._step += 1

    def expect_one(self, what: str) -> None:
        """Refuses several vectors, for what knows one e."""
        if self.has_several:
            raise ValueError(
                f"{what}: expected a RetainEMA of one set with nothing kept, got {self.sets} sets and "
                f"{len(self._kept)} kept gradients; rectify_ with rule gem or subspace goes by them"
            )

    # ---- keeping it --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self) -> None:
        """Back to ``e(0) = 0``: forgets everything, pending retain gradients and kept ones included."""
        for average in self._averages:
            for ema in average.tensors:
                ema.zero_()
            average.see([False] * len(average.params))
            average.replaced(average.tensors, [])
        self._kept.clear()
        self._begin_anew()
        self._step = 0

    def discard(self) -> None:
        """Gives up the step in progress, for example after an error in backward: what it had collected is dropped.

        What :meth:`stream` has folded into e stays there. The step does not count.
        """
        for pending in self._pendings:
            pending.check_outside("discard")
        self._begin_anew()

    def to(self, device: torch.device | str | int) -> RetainEMA:
        """Moves e to ``device`` (it must lie where the gradients do). Returns itself."""
        self._expect_between_steps("to")
        for average in self._averages:
            average.replaced([e.to(device) for e in average.tensors], _rounding_steps(average))
        self._kept = [[r.to(device) for r in gradient] for gradient in self._kept]
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything a later run needs to go on bit for bit: call it between steps. Tensors are not copied.

        The e of a sharded parameter is a DTensor: with ``torch.distributed.checkpoint`` (which takes this object as it
        takes a model) another number of processes can load it. ``torch.save`` writes the shards of one process.
        """
        self._expect_between_steps("state_dict")
        state: dict[str, Any] = {
            "format": FORMAT,
            "ema": self.tensors,
            "names": self.names,
            "seen": [seen for average in self._averages for seen in average.seen],
            "step": self._step,
            "seed": self._average.seed,
            "rounding_steps": [step for average in self._averages for step in _rounding_steps(average)],
        }
        if self._kept:
            state |= {"format": FORMAT_KEPT, "kept": self.kept, "num_kept": len(self._kept)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state. Checks everything (number, names, shapes, dtypes) before it changes anything.

        Its e may be sharded in another way than the parameters here, or not at all. ``torch.distributed.checkpoint``
        fills kept gradients in where as many have been kept here; where not, this is an error.
        """
        self._expect_between_steps("load_state_dict")
        shapes = [param.shape for param in self.params]
        check_state(state, self.names, [average.tensors for average in self._averages], shapes)
        saved_kept = state.get("kept", [])
        if self.sets + len(saved_kept) > MAX_VECTORS:
            raise ValueError(
                f"state_dict: expected at most {MAX_VECTORS} sets and kept gradients together, got {self.sets} and "
                f"{len(saved_kept)}"
            )
        count, steps = len(self), [int(value) for value in state["rounding_steps"]]
        each = len(steps) // self.sets
        for place, average in enumerate(self._averages):
            of_set = slice(place * count, (place + 1) * count)
            _take_over(average.tensors, state["ema"][of_set], average.params)
            average.see([bool(seen) for seen in state["seen"][of_set]])
            average.seed = int(state["seed"]) + place
            average.replaced(average.tensors, steps[place * each : (place + 1) * each])
        self._kept = [
            _take_over([_empty_part(p, r) for p, r in zip(self.params, kept, strict=True)], kept, self.params)
            for kept in saved_kept
        ]
        self._step = int(state["step"])

    def __getstate__(self) -> Any:
        raise TypeError("RetainEMA: cannot be copied or pickled, since it belongs to its parameters; save state_dict()")

    @property
    def _average(self) -> Average:
        return self._averages[0]

    def _laid_out(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Parts that lie here as what they are parts of."""
        pairs = zip(self._average.params, (tensor.detach() for tensor in tensors), strict=True)
        return [global_like(param, part) if is_sharded(param) else part for param, part in pairs]

    def _begin_anew(self) -> None:
        self._pendings = [StepInProgress(average) for average in self._averages]

    def _pending_of(self, place: int, how: str) -> StepInProgress:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.sets:
            wanted = "0, since there is one set" if self.sets == 1 else f"a whole number from 0 to {self.sets - 1}"
            raise ValueError(f"set: expected {wanted}, got {place!r}; RetainEMA(..., sets=) says how many there are")
        for other, pending in enumerate(self._pendings):
            if other != place:
                pending.check_outside(f"{how}()")
        return self._pendings[place]

    def _expect_between_steps(self, what: str) -> None:
        if any(pending.is_begun for pending in self._pendings):
            raise RuntimeError(f"{what}: this step's retain gradients are still pending; call it after rectify_")


def _check_sets(sets: Any) -> int:
    if isinstance(sets, bool) or not isinstance(sets, int) or not 1 <= sets <= MAX_VECTORS:
        raise ValueError(f"sets: expected a whole number from 1 to {MAX_VECTORS}, got {sets!r}")
    return sets


def _rounding_steps(average: Average) -> list[int]:
    """One per device that holds a 16-bit e."""
    return [int(value) for value in average.rounding.values()]


def _take_over(tensors: list[Tensor], saved: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    for ours, theirs, param in zip(tensors, saved, params, strict=True):
        take_over(ours, theirs, param)
    return tensors


def _empty_part(param: Tensor, like: Tensor) -> Tensor:
    """Room for what of ``like`` lies here, in a dtype that goes with the parameter's gradient."""
    dtype = like.dtype if like.dtype == param.dtype else torch.float32
    return torch.empty_like(local(param), dtype=dtype, requires_grad=False)
