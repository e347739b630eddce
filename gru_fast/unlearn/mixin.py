"""``GRUMixin``: the rectification of every step, for any ``Trainer`` subclass with an unlearning and a retain loss."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from gru_fast.core.agreement import agreement
from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import measure, rectify_
from gru_fast.core.result import Rectification
from gru_fast.core.sharded.shards import is_sharded, local
from gru_fast.core.update_monitor import measure_update
from gru_fast.models.four_bit import check_trainable
from gru_fast.unlearn.config import GRUOptions, raise_all, splits_sequences, steps_in_backward, tries_batch_sizes
from gru_fast.unlearn.engines import zero_config
from gru_fast.unlearn.engines.fsdp import plain_names, sharded_modules
from gru_fast.unlearn.gru_state import load_gru_state, save_gru_state
from gru_fast.unlearn.lora_start import LoraShare, LoraStart
from gru_fast.unlearn.own_optimizer import OwnOptimizer
from gru_fast.unlearn.resuming import WholeCheckpoints
from gru_fast.unlearn.retain_gradients import RetainGradients

_AVERAGED = (
    "cos",
    "cos_after",
    "angle_before",
    "angle_after",
    "norm_before",
    "norm_after",
    "norm_ema",
    "conflict",
    "clipped",
)
_OF_THE_UPDATE = ("update_cos", "update_cos_after", "update_conflict")


@dataclasses.dataclass
class StepCounts:
    """Steps that were not applied, over the whole run."""

    skipped: int = 0  # NaN or Inf
    degenerate: int = 0  # nothing was left: g was exactly opposite to e
    in_a_row: int = 0  # of either kind, up to now
    applied: int = 0


class GRUMixin(OwnOptimizer, RetainGradients, WholeCheckpoints):
    """Puts Gradient Rectified Unlearning in front of a ``transformers.Trainer`` subclass::

        class GRUGradDiff(GRUMixin, GradDiff):
            gru = GRUOptions(gamma=0.8, tau=1.0)

    ``compute_loss(model, inputs)`` of the class behind it is the whole unlearning objective, whose gradient is g.
    ``inputs["retain"]`` is the data to keep, and ``compute_retain_loss(model, retain_inputs)``, or where there is none
    the model's own loss, gives r: the manner of the unified framework's trainers. Every optimizer step then goes
    through :func:`gru_fast.rectify_`; gradient accumulation, mixed precision, checkpoints and resuming are those of
    Trainer. Both losses must be means, which are divided by the number of accumulated micro-batches.

    The options come from the constructor's ``gru=`` (a :class:`GRUOptions`, or a mapping of its fields), else from the
    class attribute, else from ``args`` if it is an :class:`UnlearnConfig`. They have a name of their own since the
    methods behind it have a gamma of theirs.

    A step with NaN or Inf in g or r, or of which nothing is left, is not applied: weights and moments of the optimizer
    stay (with a float16 loss scaler, it lowers its scale). Logged with the training loss, as means since the last log:
    ``retain_loss``, ``cos``, ``cos_after``, ``angle_before``, ``angle_after`` (degrees), ``norm_before``,
    ``norm_after``, ``norm_ema``, ``conflict`` and ``clipped`` (share of the steps), and the counts so far ``skipped``
    and ``degenerate``. With ``monitor_retain`` also ``cos_retain``, cos(e, r) before e takes r in: how well the average
    foretells the next retain gradient (not with ``stream``, where r is never there as a whole). With LoRA
    ``lora_a_share``, the part of |g|^2 that is of A: 0 in the first step, where B is zero and the cosines speak of B
    alone; and a run whose B stays zero is stopped (:class:`~gru_fast.unlearn.lora_start.LoraStart`). With
    ``rectify_update`` or ``monitor_update`` also ``update_cos``, between the optimizer's step and e,
    ``update_cos_after`` and ``update_conflict`` (share of the steps that would have raised the retain loss). With
    ``retain_sets`` the mean of the sets' averages stands for e, and ``retain_loss_NAME``, ``cos_NAME_set`` and
    ``cos_NAME_set_after`` say it of each ("retain" is the first). A value that does not exist (no angle without a norm)
    is left out.

    Trainer's own clipping comes after GRU's: leave it to ``tau`` with ``max_grad_norm=0`` in ``TrainingArguments``,
    where it is 1 (``UnlearnConfig`` has it off).

    Models may be sharded: by accelerate (FSDP2, HSDP, DeepSpeed ZeRO), or by
    ``from_pretrained(distributed_config=...)``, which can do tensor parallelism too. Under FSDP2 gradients are
    exchanged after every backward pass, also where accumulation would put that off, since the two losses would mix
    inside the sharded modules. DeepSpeed's engine is driven in place of accelerate, which would step within backward;
    e follows stand-ins for its parts. Not with FSDP 1, whose gradients are not in ``param.grad``, nor with fp16 under
    tensor parallelism or DeepSpeed.
    """

    gru: GRUOptions | Mapping[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        classes = cls.__mro__
        if Trainer in classes and classes.index(Trainer) < classes.index(GRUMixin):
            raise TypeError(f"{cls.__name__}: name GRUMixin first among the base classes, or it changes nothing")

    def __init__(self, *args: Any, gru: GRUOptions | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gru_options = _resolve_options(self.gru if gru is None else gru, self.args)
        self._rule = self.gru_options.make_rule()
        self.gru_counts = StepCounts()
        self._steps: list[Rectification] = []  # since the last log
        self._agreements: list[Rectification] = []  # since the last log: e beside each r
        self._last_step: Rectification | None = None
        self._noted: dict[str, list[Tensor]] = {}
        self._lora_share: LoraShare | None = None
        self._check_supported()
        self.add_callback(LoraStart(self._sum_over_processes, self._step_was_skipped))
        self.add_callback(_GRUCallback(self._begin_training, self._end_training))

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def note(self, name: str, value: Tensor) -> None:
        """Has the mean of ``value`` over the micro-batches since the last log logged as ``name``."""
        held = self._noted.setdefault(name, [])
        value = value.detach().float()
        if held:
            held[0] += value
            held[1] += 1
        else:
            self._noted[name] = [value.clone(), torch.ones_like(value)]

    # ---- one step ----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch: r, then g. The last of a step ends with the rectification of what they have added up to."""
        with self.engine.driving():
            loss = self._micro_batch(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            is_applied = not self.gru_options.follows_retain or self._end_step()
            (self.engine.step if is_applied else self.engine.skip)()
        return loss

    def _micro_batch(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not self.gru_options.follows_retain:
            return super().training_step(model, inputs, *args, **kwargs)
        try:
            inputs = self._prepare_inputs(inputs)
            self.engine.exchange_always()
            if self.gru_options.warm_up_retain and self.retain_ema.step == 0:
                self.warm_up(model)
            self.take_retain_gradient(model, inputs)
            if self.gru_options.rectify:
                loss = self.mean_step(super().training_step, model, inputs)
            else:
                loss = super().training_step(model, inputs, *args, **kwargs)
        except BaseException:
            self._give_up_step()
            raise
        finally:
            self.gru_share, self.gru_retain_loss = 0.0, None
        return loss

    def _end_step(self) -> bool:
        """Whether the optimizer may apply the step."""
        options, ema = self.gru_options, self.retain_ema
        params = self.engine.trainable()
        self._step_share = None
        if options.monitor_retain and isinstance(ema, RetainEMA) and ema.step > 0:
            self._agreements.append(agreement(ema))
        if self._lora_share:
            self.note("lora_a_share", self._lora_share.of_gradient())
        with self._unscaled(params):
            if not options.rectify:
                step = measure(params, ema, options.ema_gamma)
            elif self.rectifying_optimizer is not None:
                step = self.rectifying_optimizer.prepare()
            else:
                how: dict[str, Any] = {"rule": self._rule, "granularity": options.granularity}
                step = rectify_(params, ema, options.ema_gamma, options.tau, **how)
            if options.monitor_update and not step.skipped and isinstance(ema, RetainEMA):
                measure_update(self.bare_optimizer, ema, step)
        self._steps.append(step)
        if not options.rectify:
            return True
        self._last_step = step
        if not (step.nonfinite or step.degenerate):
            self.gru_counts.applied += 1
            self.gru_counts.in_a_row = 0
            return True
        self._withhold(params)
        self.gru_counts.skipped += step.nonfinite
        self.gru_counts.degenerate += step.degenerate
        self.gru_counts.in_a_row += 1
        if self.gru_counts.in_a_row > options.max_skipped_steps:
            raise RuntimeError(self._why_stopped(f"more than max_skipped_steps={options.max_skipped_steps} in a row"))
        return False

    @contextmanager
    def _unscaled(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Inside, g is free of a loss scaler's factor. Outside it has it again, since Trainer takes it off once."""
        scaler = self.accelerator.scaler
        if scaler is None:
            yield
            return
        scale = scaler.get_scale()  # a power of 2: nothing is rounded
        _scale_gradients_(params, 1.0 / scale)
        yield
        _scale_gradients_(params, scale)

    def _withhold(self, params: Sequence[Tensor]) -> None:
        """Sees to it that the optimizer does not apply this step: no update, no decay, no new moments."""
        if self.accelerator.scaler is None:
            for param in params:
                param.grad = None
            if self.rectifying_optimizer is not None:
                self.rectifying_optimizer.give_up()
            return
        # A scaler that has seen no gradient refuses to step. Shown an infinite one it skips, and lowers its scale.
        first = params[0]
        first.grad = torch.full_like(first, math.inf)

    def _begin_training(self) -> None:
        self._give_up_step()  # of a run that was interrupted
        self._forget_logs()
        if self.gru_options.follows_retain:  # only now is a model sharded
            self._lora_share = LoraShare(self.engine.named_parameters())

    def _end_training(self) -> None:
        counts = self.gru_counts
        if self.gru_options.rectify and counts.in_a_row > 0 and counts.applied == 0:
            raise RuntimeError(self._why_stopped(f"all {counts.in_a_row} steps"))

    def _give_up_step(self) -> None:
        self._step_share = None
        if self._ema is not None:
            self._ema.discard()
        if self._engine is not None:
            self._engine.give_up()

    def _sum_over_processes(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum")

    def _step_was_skipped(self) -> bool:
        step = self._last_step
        by_rule = self.gru_options.rectify and step is not None and (step.nonfinite or step.degenerate)
        return by_rule or bool(self.accelerator.optimizer_step_was_skipped)

    def _why_stopped(self, what: str) -> str:
        counts, step = self.gru_counts, self._last_step
        why = "in the checkpoint this run was resumed from"
        if step is not None and step.degenerate:
            why = (
                "the unlearning gradient was exactly opposite to the retain gradients' average; are the rows to forget "
                "among those to keep?"
            )
        elif step is not None:
            where = "unlearning" if step.grad_nonfinite else "retain"
            if step.nonfinite and not (step.grad_nonfinite or step.retain_nonfinite):  # vetoed: nobody looked in which
                where = "unlearning or retain"
            why = f"NaN or Inf in the {where} gradient; lower learning_rate, or train in bfloat16 or float32"
        return (
            f"no step can be applied: {what} were skipped ({counts.skipped} with NaN or Inf, {counts.degenerate} "
            f"degenerate, {counts.applied} applied before). The last: {why}"
        )

    def _check_supported(self) -> None:
        options = self.gru_options
        self.check_optimizer()
        is_spread = self.is_sharded or self.is_fsdp_enabled or self.is_deepspeed_enabled
        is_fsdp = self.is_fsdp_enabled or self.is_sharded
        of_four_bit = "FSDP, which leaves the weights in 4 bits whole on every process, so that nothing is saved by it"
        check_trainable(self.accelerator.unwrap_model(self.model), refused=of_four_bit if is_fsdp else "")
        raise_all(tries_batch_sizes(self.args, is_spread))
        if self.is_deepspeed_enabled:
            self._check_deepspeed(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        if not options.follows_retain:
            return
        name = type(self).__name__
        if self.is_fsdp_enabled and self._fsdp_version != 2:
            raise ValueError(
                f"{name}: GRU does not work with FSDP {self._fsdp_version}'s flattened parameters; use FSDP2 "
                "(fsdp_version: 2 in the accelerate configuration), or DDP"
            )
        has_shards = self.is_sharded or any(map(is_sharded, self.model.parameters()))  # or will have
        if not self.is_fsdp_enabled and has_shards and self.accelerator.mixed_precision == "fp16":
            raise ValueError(
                "fp16: not with parameters that are sharded without accelerate (at load, tensor parallel), with which "
                "no loss scaler was tried; use bf16, or accelerate's FSDP2"
            )
        raise_all(
            steps_in_backward(self.args) + splits_sequences(getattr(self.accelerator, "parallelism_config", None))
        )
        self._check_ema_dtype()
        # 1.0 in TrainingArguments, whether anybody has asked for it or not; in an UnlearnConfig somebody has.
        clipping = 0.0 if isinstance(self.args, GRUOptions) else self.args.max_grad_norm
        if options.rectify and options.tau is not None and 0.0 < clipping < options.tau < math.inf:
            warnings.warn(
                f"max_grad_norm={clipping:g} clips below tau={options.tau:g}, which then has no effect; "
                "set max_grad_norm=0",
                stacklevel=2,
            )

    def _check_deepspeed(self, config: dict[str, Any]) -> None:
        args = self.args
        zero_config.settle(
            config, args.max_grad_norm, args.per_device_train_batch_size, args.gradient_accumulation_steps
        )
        errors, options = zero_config.errors_of_objective(config), self.gru_options
        if not dist.is_initialized():
            errors += zero_config.errors_of_launch(os.environ)
        if options.follows_retain:
            errors += zero_config.errors_of_gru(config)
            if self.uses_own_optimizer or options.monitor_update:
                errors.append(
                    "optim, rectify_update, monitor_update: not with DeepSpeed, which has weights and moments in "
                    "memory of its own; take adamw_torch without them, or FSDP2"
                )
            if options.granularity != "global" and zero_config.stage_of(config) in (1, 2):
                errors.append(
                    "granularity: expected global with ZeRO-1 and 2, where a process has a piece of all parameters "
                    "together; take ZeRO-3"
                )
            if options.ema_torch_dtype not in (None, torch.float32):
                errors.append("ema_dtype: expected float32 with DeepSpeed, whose gradients come in it")
        raise_all(errors)

    @property
    def is_sharded(self) -> bool:
        """Whether the model is trained with FSDP2: it may be sharded by now, or be so when training begins."""
        return self._fsdp_version == 2 if self.is_fsdp_enabled else bool(sharded_modules(self.model))

    @property
    def _fsdp_version(self) -> int:
        """Of accelerate's configuration."""
        return getattr(getattr(self.accelerator.state, "fsdp_plugin", None), "fsdp_version", 1)

    def _check_ema_dtype(self) -> None:
        """Refuses now what RetainEMA would refuse in the first step, in the words of the options."""
        wanted = self.gru_options.ema_torch_dtype
        there = {param.dtype for param in self.model.parameters() if param.requires_grad}
        if wanted not in {None, torch.float32, *there}:
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in there)) or "none"
            raise ValueError(
                f"ema_dtype: expected float32 or a dtype of the trained parameters ({found}), got "
                f"{self.gru_options.ema_dtype}; leave it out, or load the model in {self.gru_options.ema_dtype} (dtype)"
            )

    # ---- logs --------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log; with a training loss in it, the statistics since the last one are added."""
        if "loss" in logs:
            logs = {**logs, **self._collected_logs()}
        super().log(logs, *args, **kwargs)

    def _collected_logs(self) -> dict[str, float]:
        logs: dict[str, float] = {}
        for name, (total, count) in self._noted.items():
            mean = total / count
            if self.accelerator.num_processes > 1:
                mean = self.accelerator.reduce(mean, reduction="mean")
            logs[name] = float(mean)
        has_update = any(step.update is not None for step in self._steps)
        wanted = (*_AVERAGED, *(_OF_THE_UPDATE if has_update else ()))
        found = {name: [float(getattr(step, name)) for step in self._steps] for name in wanted}
        found["cos_retain"] = [step.cos for step in self._agreements]
        for place, part in enumerate(("retain", *(self.gru_options.retain_sets or ()))):
            of_set = [entries[place] for step in self._steps if (entries := step.sets())]
            found[f"cos_{part}_set"] = [entry.cos for entry in of_set]
            found[f"cos_{part}_set_after"] = [entry.cos_after for entry in of_set]
        for name, values in found.items():
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                logs[name] = sum(finite) / len(finite)
        if self.gru_options.rectify:
            logs["skipped"], logs["degenerate"] = self.gru_counts.skipped, self.gru_counts.degenerate
        self._forget_logs()
        return {name: value for name, value in logs.items() if math.isfinite(value)}

    def _forget_logs(self) -> None:
        self._noted, self._steps, self._agreements = {}, [], []

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with plain_names(self.model):
            super()._save(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with plain_names(self.model):
            super()._load_from_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Trainer's, with e beside: what a resumed run needs to go on bit for bit."""
        with plain_names(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
        if self.gru_options.follows_retain and (self.args.should_save or any(map(is_sharded, self.engine.trainable()))):
            save_gru_state(output_dir, self.retain_ema, dataclasses.asdict(self.gru_counts))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.gru_options.follows_retain:
            self.gru_counts = StepCounts(**load_gru_state(checkpoint, self.retain_ema))


class _GRUCallback(TrainerCallback):
    """Begins and ends the book-keeping of a training run."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._end()


def _scale_gradients_(params: Sequence[Tensor], factor: float) -> None:
    grads = [local(param.grad) for param in params if param.grad is not None]
    if grads:
        torch._foreach_mul_(grads, factor)


def _resolve_options(given: GRUOptions | Mapping[str, Any] | None, args: Any) -> GRUOptions:
    if given is None:
        return args.gru_options() if isinstance(args, GRUOptions) else GRUOptions()
    if isinstance(given, GRUOptions):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"gru: expected GRUOptions or a mapping of its fields, got {type(given).__name__}")
    known = [field.name for field in dataclasses.fields(GRUOptions)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f'gru: expected some of {", ".join(known)}, got "{unknown[0]}"')
    return GRUOptions(**given)
