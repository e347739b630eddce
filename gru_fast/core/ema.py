"""The moving average of retain gradients: how retain gradients come in, without a copy and without a second set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.backends import native
from gru_fast.core.backends.native import TensorList
from gru_fast.core.buckets import HeldGradients, kept
from gru_fast.core.checks import check_gamma, check_loss_scale, check_share
from gru_fast.core.ops import RETAIN_NONFINITE, passes_for
from gru_fast.core.params import ema_dtypes, trainable_params
from gru_fast.core.saved_state import FORMAT, check_state
from gru_fast.core.sharded.rows import ShardedRows
from gru_fast.core.sharded.shards import global_like, is_sharded, local, take_over

_grad_of = attrgetter("grad")


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
        named, self._names = trainable_params(params)
        self._params = named
        self._row_of = {id(param): row for row, param in enumerate(self._params)}
        self._sharded = ShardedRows(self._params, self._names)
        self._seed = int(seed)
        self._tensors = [  # of sharded parameters the parts that lie here
            torch.zeros_like(local(p), dtype=t, requires_grad=False)
            for p, t in zip(self._params, ema_dtypes(self._params, dtype, self._names), strict=True)
        ]
        self._rounding_keys = self._sharded.rounding_keys(self._tensors)
        self._seen = [False] * len(self._params)  # whether a retain gradient has ever come in
        self._tensors_changed([])
        self._step = -1
        self._end_step()

    # What belongs to the step in progress; _end_step sets it.
    _retain: list[Tensor | None]  # collected, one per parameter
    _collected: bool
    _stream_gamma: float | None  # given to stream() in this step
    _folded: list[bool]  # which parameters stream() has taken in
    _fold_stats: dict[torch.device, Tensor] | None
    _share: float  # of the collected retain gradients in the unlearning gradient, still to be added
    _held: list[Tensor | None]  # what .grad was before the stream() block
    _folds: int  # of sharded parameters, in the stream() block
    _stream_share: float
    _scale: float
    _is_scaled: bool
    _inside: str | None  # "collect" or "stream" while in the block

    # ---- what it holds -----------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The e of each parameter, sharing memory with this object; modified in place by every step."""
        whole = (e.detach() for e in self._tensors)
        return [global_like(p, e) if is_sharded(p) else e for p, e in zip(self._params, whole, strict=True)]

    @property
    def params(self) -> list[Tensor]:
        """The parameters it follows, in order."""
        return list(self._params)

    @property
    def names(self) -> list[str] | None:
        """Their names, if it was made from ``named_parameters()``."""
        return None if self._names is None else list(self._names)

    @property
    def step(self) -> int:
        """Number of steps :func:`gru_fast.rectify_` has ended."""
        return self._step

    @property
    def nbytes(self) -> int:
        """Bytes of e in this process."""
        return sum(e.numel() * e.element_size() for e in self._tensors)

    @property
    def pending_nbytes(self) -> int:
        """Bytes of retain gradients collected and not yet folded into e (0 with :meth:`stream`)."""
        here = (local(r) for r in self._retain if r is not None)
        return sum(r.numel() * r.element_size() for r in here)

    def __len__(self) -> int:
        return len(self._params)

    def __repr__(self) -> str:
        dtypes = sorted({str(e.dtype).removeprefix("torch.") for e in self._tensors})
        elements = sum(p.numel() for p in self._params)
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
        untouched. The scaler itself sees only g: where ``step.skipped and not step.grad_nonfinite``, lower its scale
        with ``scaler.update(scaler.get_scale() / 2)``. An exception inside discards what the step had collected.

        ``share``: for an objective that contains ``share`` times this very retain loss. By the time ``rectify_`` looks
        at it, g has ``share`` times the retain gradient added, unscaled: leave that term out of the unlearning loss and
        save its forward and backward pass. The same in every micro-batch of a step.
        """
        share = check_share(share)
        if self._collected and share != self._share:
            raise ValueError(
                f"share: expected {self._share} as in the earlier micro-batches of this step, got {share}; give the "
                "difference to the unlearning loss"
            )
        self._enter("collect", scale)
        self._share = share
        held = HeldGradients(self._params)
        for param, retain in zip(self._params, self._retain, strict=True):
            param.grad = retain
        before = self._sharded.marks()
        try:
            yield self
            self._sharded.check_marks(before, "collect()")
            self._retain = [kept(p.grad, own) for p, own in zip(self._params, self._retain, strict=True)]
            self._collected = True
        except BaseException:
            self._retain = [None] * len(self._params)
            self._collected = False
            raise
        finally:
            self._inside = None
            held.put_back()

    @contextmanager
    def stream(self, gamma: float, scale: Any = None, *, share: float = 0.0) -> Iterator[RetainEMA]:
        """As :meth:`collect`, but each retain gradient goes into e as backward produces it, and is freed at once.

        The retain gradient never exists as a whole: peak memory is parameters + e + one set of gradients. Over several
        micro-batches of a step e decays once. ``rectify_`` ends the step and must be given the same ``gamma``.

        What has been folded in cannot be taken back: NaN and Inf are refused element by element, also with a ``scale``
        (unlike :meth:`collect`, where such a step is all or nothing), and an exception inside leaves a step begun,
        which ``rectify_`` or :meth:`discard` ends. For float16 with a loss scaler prefer :meth:`collect`. Works with
        FSDP2, which has reduced a gradient over the processes when it comes here; not with DistributedDataParallel,
        which does so later.

        ``share``: as for :meth:`collect`, but it may differ between micro-batches, and g has its share (of the gradient
        as backward gives it, scaled or not) when the block is left.
        """
        gamma, share = check_gamma(gamma), check_share(share)
        if self._stream_gamma is not None and self._stream_gamma != gamma:
            raise ValueError(f"gamma: expected {self._stream_gamma} as earlier in this step, got {gamma}")
        self._enter("stream", scale)
        self._stream_gamma = gamma
        if self._fold_stats is None:
            self._fold_stats = {
                device: torch.zeros(native.NUM_STATS, dtype=torch.float64, device=device) for device in self.devices
            }
        self._held = [p.grad for p in self._params]
        self._stream_share, self._folds = share, 0
        for param in self._params:
            param.grad = None
        hooks = [p.register_post_accumulate_grad_hook(self._fold) for p in self._params]
        try:
            yield self
            self._check_streamed()
        finally:
            self._inside = None
            for hook in hooks:
                hook.remove()
            for param, grad in zip(self._params, self._held, strict=True):
                param.grad = grad
            self._held = []

    @torch.no_grad()
    def _fold(self, param: Tensor) -> None:
        """Takes one parameter's fresh gradient into its e."""
        given, param.grad = param.grad, None
        if given is None or self._stream_gamma is None or self._fold_stats is None:
            return
        row = self._row_of[id(param)]
        ema = self._tensors[row]
        self._folds += is_sharded(param)
        given = self._sharded.placed(given, param, row, "retain_grads")
        retain = local(given)
        names = None if self._names is None else [self._names[row]]
        key = [self._rounding_keys[row]]
        passes = passes_for(ema.device)([None], [retain], [ema], ids=[row], names=names, rounding_keys=key)
        keep = 1.0 if self._folded[row] else 1.0 - self._stream_gamma
        gain = self._stream_gamma / self._scale
        passes.fold(keep, gain, self._seed, self._rounding.get(ema.device))
        self._fold_stats[ema.device][RETAIN_NONFINITE] += passes.stats[RETAIN_NONFINITE].to(ema.device)
        self._folded[row] = self._seen[row] = True
        if self._stream_share != 0.0:
            held = self._held[row]
            if held is None:
                # Not in place: autograd may have given two parameters gradients that share memory.
                self._held[row] = given * self._stream_share
            else:
                local(held).add_(retain, alpha=self._stream_share)

    def _check_streamed(self) -> None:
        self._sharded.check_taken(self._folds, "stream()")
        if any(p.grad is not None for p in self._params):
            raise RuntimeError(
                "stream(): expected each gradient once, but something put gradients back after e had taken them in, as "
                "DistributedDataParallel does, which averages them later: use collect(), or FSDP2 (fully_shard)"
            )

    def _enter(self, how: str, scale: Any) -> None:
        if self._inside is not None:
            raise RuntimeError(f"{how}() inside {self._inside}(): leave the first block before entering another")
        started = "collect" if self._collected else "stream" if self._stream_gamma is not None else how
        if started != how:
            raise RuntimeError(f"{how}() after {started}() in one step: use one of them, rectify_ ends the step")
        value, is_scaled = _loss_scale(scale)
        in_step = self._collected or self._stream_gamma is not None
        if in_step and (value != self._scale or is_scaled != self._is_scaled):
            raise ValueError(f"scale: expected {self._scale} as in the earlier micro-batches of this step, got {value}")
        self._scale, self._is_scaled = value, is_scaled
        self._inside = how

    # ---- for rectify_ ------------------------------------------------------------------------------------------------

    @property
    def devices(self) -> list[torch.device]:
        """The devices e lies on."""
        return self._devices

    def _check_can_end(self, retain: Sequence[Tensor | None] | None) -> None:
        if self._inside is not None:
            raise RuntimeError(f"rectify_ inside {self._inside}(): call it after the block")
        if retain is not None and (self._collected or self._stream_gamma is not None):
            raise ValueError("retain_grads: expected None, since this step's retain gradients are in the EMA already")

    def _gradients(self) -> list[Tensor | None]:
        """g, one per parameter; it and r of sharded parameters are brought into their parameter's placements."""
        grads: list[Tensor | None] = list(map(_grad_of, self._params))
        if self._sharded.shards is not None:
            for row in self._sharded.place(grads, "grads"):
                self._params[row].grad = grads[row]
            self._sharded.place(self._retain, "retain_grads")
        return grads

    def _end_step(self) -> None:
        self._drop_pending()
        self._step += 1

    def _drop_pending(self) -> None:
        self._retain = [None] * len(self._params)
        self._collected = False
        self._stream_gamma = None
        self._folded = [False] * len(self._params)
        self._fold_stats = None
        self._share, self._stream_share, self._folds = 0.0, 0.0, 0
        self._held = []
        self._scale, self._is_scaled = 1.0, False
        self._inside = None

    def _tensors_changed(self, rounding_steps: Sequence[int]) -> None:
        """Looks at e anew. ``rounding_steps``: one per device that holds a 16-bit e (else the largest serves all)."""
        self._devices = list(dict.fromkeys(e.device for e in self._tensors))
        self._known = TensorList(self._tensors) if all(map(native.serves, self._devices)) else None
        devices = list(dict.fromkeys(e.device for e in self._tensors if e.dtype != torch.float32))
        if len(rounding_steps) != len(devices):
            rounding_steps = [max(rounding_steps, default=0)] * len(devices)
        self._rounding = {
            device: torch.full((1,), step, dtype=torch.int64, device=device)
            for device, step in zip(devices, rounding_steps, strict=True)
        }

    # ---- keeping it --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self) -> None:
        """Back to ``e(0) = 0``: forgets everything, pending retain gradients included."""
        for ema in self._tensors:
            ema.zero_()
        self._seen = [False] * len(self._params)
        self._tensors_changed([])
        self._step = -1
        self._end_step()

    def discard(self) -> None:
        """Gives up the step in progress, for example after an error in backward: what it had collected is dropped.

        What :meth:`stream` has folded into e stays there. The step does not count.
        """
        if self._inside is not None:
            raise RuntimeError(f"discard inside {self._inside}(): call it after the block")
        self._drop_pending()

    def to(self, device: torch.device | str | int) -> RetainEMA:
        """Moves e to ``device`` (it must lie where the gradients do). Returns itself."""
        self._expect_between_steps("to")
        rounding = [int(value) for value in self._rounding.values()]
        self._tensors = [e.to(device) for e in self._tensors]
        self._tensors_changed(rounding)
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
            "seen": list(self._seen),
            "step": self._step,
            "seed": self._seed,
            "rounding_steps": [int(value) for value in self._rounding.values()],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state. Checks everything (number, names, shapes, dtypes) before it changes anything.

        Its e may be sharded in another way than the parameters here, or not at all.
        """
        self._expect_between_steps("load_state_dict")
        check_state(state, self._names, self._tensors, [param.shape for param in self._params])
        for ours, theirs, param in zip(self._tensors, state["ema"], self._params, strict=True):
            take_over(ours, theirs, param)
        self._seen = [bool(seen) for seen in state["seen"]]
        self._seed = int(state["seed"])
        self._step = int(state["step"])
        self._tensors_changed([int(value) for value in state["rounding_steps"]])

    def __getstate__(self) -> Any:
        raise TypeError("RetainEMA: cannot be copied or pickled, since it belongs to its parameters; save state_dict()")

    def _expect_between_steps(self, what: str) -> None:
        if self._inside is not None or self._collected or self._stream_gamma is not None:
            raise RuntimeError(f"{what}: this step's retain gradients are still pending; call it after rectify_")


def _loss_scale(scale: Any) -> tuple[float, bool]:
    """The number that the loss was multiplied with, and whether there was one."""
    if scale is None:
        return 1.0, False
    return check_loss_scale(scale.get_scale() if hasattr(scale, "get_scale") else scale, "scale"), True
