"""``AdamW``: torch's, with the gradient of a step rectified inside it, and the update that is really made too.

What each way promises, e being the moving average of retain gradients:

======================  ==============================================================================================
rectified               holds
======================  ==============================================================================================
the gradient, with SGD  ``<g, e> >= 0``, and so for the step itself (no momentum, no decay)
the gradient, with      ``<g, e> >= 0`` of the gradient alone. The step is made of it by momentum (gradients rectified
AdamW                   against older e's), by 1/sqrt(V), and by weight decay: it can still raise the retain loss
the update              ``<U, e> >= 0`` of the step that is made, to first order and to rounding
======================  ==============================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gru_fast.core import stats as fields
from gru_fast.core import update as sums
from gru_fast.core.adamw_options import (
    MOMENTS,
    RectifyOptions,
    check_group,
    check_moment_dtype,
    check_state,
    refuse_unoffered,
)
from gru_fast.core.adamw_step import AdamWStep, Options, Row, form_wide_gradients, settle_gradient
from gru_fast.core.backends.native import serves
from gru_fast.core.ema import RetainEMA
from gru_fast.core.load import core
from gru_fast.core.rectify import check_same_params, reduced
from gru_fast.core.result import Rectification
from gru_fast.core.rules import Rule
from gru_fast.core.sharded.rows import ShardedRows
from gru_fast.core.sharded.shards import Shards, local, rounding_key

_FLOOR = "rms_denominator"  # in the first parameter group of a state_dict: rms(D) of the last step
_TORCH_ONLY = {"amsgrad": False, "foreach": None, "differentiable": False, "fused": None}


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose steps do not raise the retain loss to first order.

    Without an ``ema`` it is ``torch.optim.AdamW``: same options and defaults, parameter groups, decoupled weight decay,
    schedulers, and a ``state_dict`` that either loads from the other. Of float32 parameters on the CPU, the weights and
    moments are those of torch's fused form bit for bit on machines with fused multiply-add.

    With an ``ema`` a step takes what ``ema.collect()`` or ``ema.stream()`` has taken in, as :func:`gru_fast.rectify_`
    does, whose call it replaces::

        ema = RetainEMA(model.named_parameters())
        optimizer = AdamW(model.parameters(), lr=1e-5, ema=ema, gamma=0.8, rectify="both")
        for ...:
            with ema.collect():
                retain_loss.backward()
            unlearn_loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    The rectified gradient is formed inside the kernels and never written; ``.grad`` stays what it was. With
    ``rectify="update"`` or ``"both"`` a step is made of two passes: M and V and, from them, U = M^ / D + wd theta with
    D = sqrt(V^) + eps; then theta. With the learning rate lr of each parameter's group, over all parameters::

        q = sum lr U e
        if q < 0:  U <- U + (-q / sum(lr e^2 / W)) e / W        so that afterwards sum lr U e = 0
        theta <- theta - lr U

    ``W`` is 1 (``metric="euclidean"``: the smallest change of U) or D + rms(D) (``"adam"``: the smallest as Adam sees
    it). Not D alone: where V is nearly 0 single weights would then move by hundreds of learning rates. rms(D) is that
    of the step before.

    16-bit parameters are rounded stochastically, and 16-bit moments too: a step too small for the grid of bfloat16 is
    made with the probability of its share, where round-to-nearest would never make it. Same seed, step and element:
    same bits.

    With an ``ema``, a step whose g holds NaN or Inf changes no weight, moment or count, and :attr:`last_step` says
    ``skipped`` (e takes r in, but for a loss scale); without one it is torch's. NaN or Inf in r is kept out of e
    element by element. With a ``torch.amp.GradScaler`` give its scale to ``collect(scaler)`` and call
    ``scaler.step(optimizer)``: a step in which it found Inf changes nothing, e included. Of a U that holds NaN or Inf
    (V has overflowed) the weights are left as they were; of a scaled step, and with ``error_if_nonfinite``, the moments
    and counts too: U is then made twice, once to look at it.

    Parameters may be sharded (DTensor): each process works on its shards, and of U eight sums cross the network.

    Args:
        params: tensors, ``(name, tensor)`` pairs or groups, as any optimizer takes them; float32, bfloat16 or float16.
        lr, betas, eps, weight_decay, maximize, capturable: as in torch. ``maximize`` not with an ``ema``.
        amsgrad, differentiable: not offered. foreach, fused: taken for torch's sake; there is one way here.
        ema: follows the very same parameters. A function: makes it when it is first needed, for parameters that are
            sharded only after the optimizer has been made.
        gamma, tau: of :func:`gru_fast.rectify_`; gamma is needed with an ``ema``.
        rectify: "gradient" (the default with an ``ema``), "update" or "both".
        rule: by which the gradient is rectified, against e: "gru", or another of :mod:`gru_fast.rules` (not sago).
        metric: "euclidean" or "adam", of the update.
        feed_back: M takes its part of the correction of U, so that momentum repeats it and later steps need less.
        write_grad: leave the rectified gradient in ``.grad`` of parameters that have one, which costs writing it.
        moment_dtype: of exp_avg and exp_avg_sq: None is the parameter's dtype (float32 of a float16 parameter, whose
            squares it could not hold), ``torch.float32`` float32 throughout.
        seed: of the rounding of 16-bit tensors.
        error_if_nonfinite: as in :func:`gru_fast.rectify_`, and where U holds NaN or Inf.

    Raises:
        TypeError, ValueError: bad arguments, named; on loading, a state that does not fit.

    >>> w = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
    >>> ema = RetainEMA([w])
    >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.0, ema=ema, gamma=1.0, rectify="both")
    >>> with ema.collect():
    ...     (2.0 * w[1]).backward()
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> optimizer.step()
    >>> w.detach(), optimizer.last_step.conflict
    (tensor([-0.1000,  0.0000]), True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        ema: RetainEMA | Callable[[], RetainEMA] | None = None,
        gamma: float | None = None,
        tau: float | None = None,
        rectify: str | None = None,
        rule: str | Rule = "gru",
        metric: str = "euclidean",
        feed_back: bool = False,
        write_grad: bool = False,
        moment_dtype: torch.dtype | None = None,
        seed: int = 0,
        error_if_nonfinite: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        del foreach, fused
        refuse_unoffered(amsgrad=amsgrad, differentiable=differentiable)
        check_moment_dtype(moment_dtype)
        self._options = RectifyOptions.checked(
            ema, gamma, tau, rectify, rule, metric, feed_back=feed_back, error_if_nonfinite=error_if_nonfinite
        )
        self._ema = ema
        self.last_step: Rectification | None = None
        self._write_grad, self._seed, self._moment_dtype = bool(write_grad), int(seed), moment_dtype
        self._prepared: Tensor | None = None
        self._given_up = False  # the step that comes
        self._floor: Tensor | None = None
        self._has_floor: Tensor | None = None  # 1: it is that of a step; on the device, as whether a step was skipped
        self._known: _Params | None = None
        self._step_supports_amp_scaling = ema is not None
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "capturable": capturable, "decoupled_weight_decay": True, **_TORCH_ONLY,
        }  # fmt: skip
        super().__init__(params, defaults)
        if isinstance(ema, RetainEMA):
            self._check_followed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in (*_TORCH_ONLY.items(), ("maximize", False), ("capturable", False)):
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups, has_ema=self._ema is not None)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @property
    def ema(self) -> RetainEMA | None:
        """The moving average of retain gradients it goes by."""
        if self._ema is not None and not isinstance(self._ema, RetainEMA):
            self._ema = RectifyOptions.check_ema(self._ema())
        return self._ema

    # ---- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self) -> Rectification:
        """The first half of :meth:`step`: e, and what will be done to g. For whoever wants to know before it is done.

        g must be free of a loss scale. ``step()`` then goes by it, unless retain gradients have come in since, which
        begin another step; calling this again begins anew.

        Raises:
            RuntimeError: without an ``ema``; with ``error_if_nonfinite``, NaN or Inf.
        """
        if self.ema is None:
            raise RuntimeError("prepare: expected an optimizer with an ema, since without one nothing is rectified")
        self._check_followed()
        options = self._options
        stats = reduced(self.ema.params, self.ema, options.gamma, error_if_nonfinite=options.error_if_nonfinite)
        if self._params.stays_on_device:
            self._step_of(self._rows(needs_grad=options.rule is None), stats).settle(options.tau, options.rule)
        else:
            rows = functools.partial(self._rows, needs_grad=False, with_state=False)
            settle_gradient(stats, options.tau, rows, self._params.shards, rule=options.rule)
        self._prepared, self._given_up = stats, False
        self.last_step = Rectification(stats, options.rule)
        return self.last_step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the parameters. ``closure``: computes the gradients (r and g) and returns the loss, which is returned.

        :attr:`last_step` says what was done: a :class:`gru_fast.Rectification`, where there is an ``ema``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.ema is None:
            self._move(self._rows(), None)
        elif not self._lost_to_scaler():
            self._rectified_step()
        return loss

    def give_up(self) -> None:
        """The next ``step()`` moves nothing, whatever :meth:`prepare` has found; e is what it has become."""
        self._given_up = True

    def _rectified_step(self) -> None:
        if self._given_up:
            self._prepared, self._given_up = None, False
            return
        assert self.ema is not None
        if self._prepared is None or self.ema.pending.is_begun:  # what begins after prepare() is another step
            self.prepare()
        stats, self._prepared = self._prepared, None
        assert stats is not None  # of prepare()
        if self._params.stays_on_device:  # kernels look at what was found, the host does not
            rows = self._rows(needs_grad=self._options.rule is None)
        elif Rectification(stats, self._options.rule).skipped:
            return
        else:
            values = stats.tolist()
            rows = self._rows(needs_grad=values[fields.BETA] * values[fields.RESCALE] == 0.0)
            stats = form_wide_gradients(stats, rows, write_grad=self._write_grad)
        update = self._move(rows, stats)
        if update is not None and self.last_step is not None:
            self.last_step.note_update(update, rectified=True)
            if self._options.error_if_nonfinite and self.last_step.update_nonfinite:
                raise RuntimeError(
                    "the update holds NaN or Inf although g and r do not: the moments, or what g makes of them, leave "
                    "float32; no weight, moment or count was changed, e was. Lower the loss or its gradient, or pass "
                    "error_if_nonfinite=False to leave such steps out"
                )

    def _move(self, rows: list[Row], stats: Tensor | None) -> Tensor | None:
        """All of AdamW; returns the sums of U where it was rectified."""
        options = self._options
        if not rows and (self._params.shards is None or not options.update):  # others may wait for our part of the sums
            return None
        self._count(rows, stats)
        step = self._step_of(rows, stats)
        if not options.update:
            step.plain()
            return None
        all_or_nothing = options.error_if_nonfinite or getattr(self, "grad_scale", None) is not None
        floor = self._known_floor(step) if options.adam else None
        update = step.rectified(floor, all_or_nothing=all_or_nothing)
        if all_or_nothing:
            self._uncount(rows, update)
        if options.adam:
            self._keep_floor(update, all_or_nothing=all_or_nothing)
        return update

    def _step_of(self, rows: list[Row], stats: Tensor | None) -> AdamWStep:
        chosen = Options(
            feed_back=self._options.feed_back, write_grad=self._write_grad, seed=self._seed,
            numel=0 if self.ema is None else self._params.numel, maximize=self.param_groups[0]["maximize"],
        )  # fmt: skip
        return AdamWStep(rows, stats, chosen, self._params.shards)

    def _count(self, rows: list[Row], stats: Tensor | None) -> None:
        """One step more for each row; where the host does not know whether it is skipped, by what the device knows."""
        steps = [row.state["step"] for row in rows]
        if not steps:
            return
        if stats is None or not self._params.stays_on_device:
            torch._foreach_add_(steps, 1.0)
        else:
            skipped = (stats[fields.VETOED] > 0) | (stats[fields.GRAD_NONFINITE] > 0)
            torch._foreach_add_(steps, (~skipped).to(steps[0].dtype))

    @staticmethod
    def _uncount(rows: list[Row], update: Tensor) -> None:
        """One step less for each row where U was not finite, so that nothing was written."""
        steps = [row.state["step"] for row in rows]
        if steps:
            made = torch.isfinite(update[sums.STEP_NORM_SQ])
            torch._foreach_add_(steps, made.to(steps[0]) - 1.0)

    def _lost_to_scaler(self) -> bool:
        """Whether a GradScaler has found Inf, which ends the step; else g is freed of its scale."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None and float(found) > 0.0:
            self._prepared, self._given_up = None, False
            if self.ema is not None:
                self.ema.discard()
            self.last_step = Rectification(_vetoed())
            return True
        grads = [local(param.grad) for param in self._params.tensors if param.grad is not None]
        if scale is not None and grads:
            torch._foreach_mul_(grads, 1.0 / float(scale))
        return False

    # ---- rms(D) ------------------------------------------------------------------------------------------------------

    def _known_floor(self, step: AdamWStep) -> Tensor:
        """That of the step before. Where there is none it is this step's own, for which U is looked at once more.

        Where the host does not know whether there is one, each step looks, and kernels return at once where there is.
        """
        if self._floor is None or self._has_floor is None:
            device = self._params.tensors[0].device
            self._floor = torch.ones(1, dtype=torch.float64, device=device)
            self._has_floor = torch.zeros(1, dtype=torch.float64, device=device)
        if self._params.stays_on_device or not bool(self._has_floor > 0.0):
            self._keep_floor(step.measured(self._floor, unless=self._has_floor))
        return self._floor

    def _keep_floor(self, update: Tensor, *, all_or_nothing: bool = False) -> None:
        assert self._floor is not None
        assert self._has_floor is not None
        found = (update[sums.DENOMINATOR_SQ] / update[sums.NUMEL]).sqrt().reshape(1).to(self._floor.device)
        if all_or_nothing:  # a step that was not made leaves no V
            found = found + 0.0 * update[sums.STEP_NORM_SQ].to(found)
        self._floor.copy_(torch.where(found.isfinite(), found, self._floor))
        self._has_floor.copy_(torch.where(found.isfinite(), 1.0, self._has_floor))

    # ---- who moves ---------------------------------------------------------------------------------------------------

    def _rows(self, *, needs_grad: bool = True, with_state: bool = True) -> list[Row]:
        """Parameters with a gradient; without ``needs_grad`` those too that have only an e, which gives them one."""
        average = None if self.ema is None else self.ema.average
        params = self._params
        grads = params.gradients()
        groups = [group for group in self.param_groups for _ in group["params"]]
        counted_in: list[int | None] = [0] * len(grads) if params.shards is None else params.shards.counted_in
        rows = []
        for index, (param, grad, group) in enumerate(zip(params.tensors, grads, groups, strict=True)):
            at = None if average is None else average.row_of.get(id(param))
            has_ema = average is not None and at is not None
            if grad is None and (needs_grad or not (has_ema and average.seen[at])):  # type: ignore[union-attr,index]
                continue
            ema = average.tensors[at] if has_ema else None  # type: ignore[union-attr,index]
            state = self._state_here(param, group) if with_state else {}
            name = None if params.names is None else params.names[index]
            here = local(param.detach())
            rows.append(Row(here, grad, state, group, ema, name, params.keys[index], counted_in[index]))
        return rows

    def _state_here(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter, made at its first step; of a sharded one what lies in this process."""
        state = self.state[param]
        if not state:
            on_device = group["capturable"] or local(param).is_cuda
            state["step"] = torch.zeros((), dtype=torch.float32, device=local(param).device if on_device else "cpu")
            for name in MOMENTS:
                state[name] = torch.zeros_like(
                    param.detach(), dtype=self._moment_dtype_of(param), memory_format=torch.preserve_format
                )
        return {"step": state["step"]} | {name: local(state[name]) for name in MOMENTS}

    def _moment_dtype_of(self, param: Tensor) -> torch.dtype:
        narrow = self._moment_dtype is None and param.dtype == torch.bfloat16
        return param.dtype if narrow or self._moment_dtype == param.dtype else torch.float32

    @property
    def _params(self) -> _Params:
        """The parameters as they are now: accelerate puts sharded ones in the places of whole ones."""
        now = [param for group in self.param_groups for param in group["params"]]
        if self._known is None or not core.same_objects(now, self._known.tensors):
            names = None
            if all("param_names" in group for group in self.param_groups):
                names = [name for group in self.param_groups for name in group["param_names"]]
            self._known = _Params(now, names)
        return self._known

    def _check_followed(self) -> None:
        """The ema follows the very parameters that move."""
        params, ema = self._params, self.ema
        if ema is None or params.is_followed:
            return
        check_same_params(params.tensors, ema.average)
        params.is_followed = True
        if params.names is None and ema.names is not None:
            known = {id(param): name for param, name in zip(ema.params, ema.names, strict=True)}
            params.names = [known.get(id(param), "untrained") for param in params.tensors]

    # ---- keeping it --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW has it: either loads the other's. With ``metric="adam"`` rms(D) is in the first group."""
        state = super().state_dict()
        if self._floor is not None and self._has_floor is not None and bool(self._has_floor > 0.0):
            state["param_groups"][0][_FLOOR] = float(self._floor)
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state of its own or of ``torch.optim.AdamW``; checks it before it changes anything.

        Moments are taken in the dtype that this optimizer keeps them in. Options of groups (lr, betas and the like)
        become the saved ones, as in torch.
        """
        check_state(state_dict, self.param_groups, has_ema=self._ema is not None)
        super().load_state_dict(dict(state_dict))
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, param in zip(saved, self._params.tensors, strict=True):
            entry = state_dict["state"].get(index)
            if entry is None:
                continue
            for name in MOMENTS:  # torch has cast them to the parameter's dtype
                self.state[param][name] = entry[name].to(device=param.device, dtype=self._moment_dtype_of(param))
            if local(param).is_cuda:
                self.state[param]["step"] = self.state[param]["step"].to(local(param).device)
        floor = self.param_groups[0].pop(_FLOOR, None)
        self._floor = None if floor is None else torch.full((1,), floor, dtype=torch.float64, device=param.device)
        self._has_floor = None if self._floor is None else torch.ones_like(self._floor)
        self._prepared, self._given_up = None, False


class _Params:
    """All parameters of an optimizer, in the order of its groups, and what is known of them."""

    def __init__(self, tensors: list[Tensor], names: list[str] | None) -> None:
        self.tensors, self.names = tensors, names
        self.is_followed = False  # by the ema
        self.numel = sum(param.numel() for param in tensors)  # over all processes
        self._sharded = ShardedRows(tensors, names)
        self.shards: Shards | None = self._sharded.shards

    def gradients(self) -> list[Tensor | None]:
        """g, one per parameter: what of it lies here, brought into its parameter's placements."""
        return self._sharded.parts(core.gradients(self.tensors), "grads", self._set_grad)

    def _set_grad(self, index: int, grad: Tensor) -> None:
        self.tensors[index].grad = grad

    @cached_property
    def keys(self) -> list[int]:
        """What the rounding bits of each parameter are drawn by: its place, and for a shard which one it is."""
        return [rounding_key(param, index, len(self.tensors)) for index, param in enumerate(self.tensors)]

    @cached_property
    def stays_on_device(self) -> bool:
        """Whether a step asks the host for nothing: one CUDA device with kernels for it, and nothing sharded."""
        devices = {param.device for param in self.tensors}
        return self.shards is None and len(devices) == 1 and all(d.type == "cuda" and serves(d) for d in devices)


def _vetoed() -> Tensor:
    """The statistics of a step that writes nothing."""
    stats = fields.of_nothing()
    stats[fields.VETOED] = 1.0
    return stats
