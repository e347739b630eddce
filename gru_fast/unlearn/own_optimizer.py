"""``OwnOptimizer``: a ``Trainer`` whose optimizer may be :class:`gru_fast.optim.AdamW`, which rectifies its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gru_fast.core.optim import AdamW
from gru_fast.unlearn.config import GRU_ADAMW, GRUOptions

if TYPE_CHECKING:
    import torch
    from transformers import Trainer as _Base  # what super() will be

    from gru_fast.core.ema import RetainEMA
else:
    _Base = object


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
    def rectifying_optimizer(self) -> AdamW | None:
        """It, without accelerate's wrapping, where it rectifies."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, AdamW) and self.gru_options.rectify else None

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
            if options.rectify_update:
                kwargs |= {"rectify": "both", "metric": options.update_metric}
            self.optimizer_cls_and_kwargs = (AdamW, kwargs)
        return super().create_optimizer(*args)

    def check_optimizer(self) -> None:
        """Refuses what does not go with it: an optimizer of the caller's, GDR, a loss scale, Trainer's clipping."""
        if not self.uses_own_optimizer:
            return
        options, asked = self.gru_options, f"optim {GRU_ADAMW} or rectify_update"
        if self.optimizer is not None and not isinstance(self.optimizer, AdamW):
            raise ValueError(f"optimizers: expected none with {asked}, got {type(self.optimizer).__name__}")
        if not options.rectify:
            return
        if options.rectifier != "gru":
            raise ValueError(f"rectifier: expected gru with {asked}, got {options.rectifier}; take adamw_torch with it")
        if options.granularity != "global" or options.against != "ema":
            raise ValueError(f"granularity, rectify_against: expected global and ema with {asked}; take adamw_torch")
        if self.accelerator.mixed_precision == "fp16":
            raise ValueError(f"fp16: not with {asked}, which know no loss scale; use bf16")
        if self.args.max_grad_norm:
            raise ValueError(
                f"max_grad_norm: expected 0 with {asked}, where it would clip the gradient before it is rectified, got "
                f"{self.args.max_grad_norm:g}; clip with tau"
            )
