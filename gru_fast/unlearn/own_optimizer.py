"""``OwnOptimizer``: a ``Trainer`` whose optimizer may be :class:`gru_fast.optim.AdamW`, which rectifies its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from gru_fast.core.optim import AdamW
from gru_fast.unlearn.config import ADAMW_TORCH, GRU_ADAMW, GRUOptions, optimizer_name

if TYPE_CHECKING:
    import torch
    from transformers import Trainer as _Base  # what super() will be

    from gru_fast.core.ema import RetainEMA
else:
    _Base = object

_ASKED = f"optim {GRU_ADAMW} or rectify_update"


class OwnOptimizer(_Base):
    """In front of a ``transformers.Trainer`` subclass, beside :class:`~gru_fast.unlearn.mixin.GRUMixin`."""

    gru_options: GRUOptions
    optimizer_cls_and_kwargs: Any

    if TYPE_CHECKING:

        @property
        def retain_ema(self) -> RetainEMA: ...

    @property
    def uses_own_optimizer(self) -> bool:
        """Whether it is asked for: ``optim="gru_adamw"``, or ``rectify_update``."""
        return self.args.optim == GRU_ADAMW or self.gru_options.rectify_update

    @property
    def bare_optimizer(self) -> Any:
        """The optimizer, of whatever class, without accelerate's wrapping."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def rectifying_optimizer(self) -> AdamW | None:
        """It, where it rectifies, by the trainer's own average."""
        optimizer = self.bare_optimizer
        if not (isinstance(optimizer, AdamW) and self.gru_options.rectify):
            return None
        return optimizer if optimizer.ema is self.retain_ema else None

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """Trainer's, with its groups and options; of another class where :attr:`uses_own_optimizer`.

        ``args``: those of Trainer, which only some versions of it, and not every class between, know.
        """
        if self.uses_own_optimizer and self.optimizer_cls_and_kwargs is None:
            settings, options = self.args, self.gru_options
            kwargs: dict[str, Any] = {
                "lr": settings.learning_rate,
                "betas": (settings.adam_beta1, settings.adam_beta2),
                "eps": settings.adam_epsilon,
                "seed": settings.seed,
            }
            if options.rectify:
                # FSDP2 may shard the parameters only now: e comes when the first step wants it.
                kwargs |= {"ema": lambda: self.retain_ema, "gamma": options.gamma, "tau": options.tau}
                kwargs["rule"] = options.make_rule()
            if options.rectify_update:
                kwargs |= {"rectify": "both", "metric": options.update_metric}
            self.optimizer_cls_and_kwargs = (AdamW, kwargs)
        return super().create_optimizer(*args)

    def check_optimizer(self) -> None:
        """Refuses what does not go with it: another optimizer, another rule, a loss scale, Trainer's clipping."""
        given = self.bare_optimizer
        if isinstance(given, AdamW) and given.ema is not None:
            raise ValueError(
                "optimizers: expected an AdamW without an ema, since the trainer keeps its own; leave it out, and the "
                f"gradient is rectified before the step, or give optim {GRU_ADAMW} instead"
            )
        if not self.uses_own_optimizer:
            return
        self._check_that_it_is_taken()
        options, asked = self.gru_options, _ASKED
        if not options.rectify:
            return
        if options.make_rule().elementwise:
            raise ValueError(f"rectifier: expected one that goes by sums with {asked}, got {options.rectifier}")
        if options.granularity != "global" or options.against != "ema" or options.retain_sets:
            raise ValueError(
                f"granularity, rectify_against, retain_sets: expected global, ema, none with {asked}; take adamw_torch"
            )
        if self.accelerator.mixed_precision == "fp16":
            raise ValueError(f"fp16: not with {asked}, which know no loss scale; use bf16")
        if self.args.max_grad_norm:
            raise ValueError(
                f"max_grad_norm: expected 0 with {asked}, where it would clip the gradient before it is rectified, got "
                f"{self.args.max_grad_norm:g}; clip with tau"
            )

    def _check_that_it_is_taken(self) -> None:
        """Refuses whatever names another optimizer, which would be passed over, or take its place."""
        if not hasattr(self, "optimizer_cls_and_kwargs"):
            raise ValueError(
                f"optim {GRU_ADAMW}, rectify_update: expected transformers 4.47 or later, whose Trainer takes a class "
                f"of optimizer, got {transformers.__version__}; update it"
            )
        if self.optimizer is not None:
            raise ValueError(f"optimizers: expected none with {_ASKED}, got {type(self.optimizer).__name__}")
        if self.optimizer_cls_and_kwargs is not None:
            given = self.optimizer_cls_and_kwargs[0].__name__
            raise ValueError(f"optimizer_cls_and_kwargs: expected none with {_ASKED}, got {given}")
        name = optimizer_name(self.args)
        if name not in {GRU_ADAMW, *ADAMW_TORCH}:
            known = f"{GRU_ADAMW}, {', '.join(ADAMW_TORCH)}"
            raise ValueError(f"optim: expected one of {known} with rectify_update, which steps as AdamW, got {name}")
