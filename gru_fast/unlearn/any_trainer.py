"""``AnyTrainer``: what differs between releases of ``transformers``, from 4.45 on, and between the trainers behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor, nn

from gru_fast.unlearn.engines import Engine, engine_of

if TYPE_CHECKING:
    from transformers import Trainer as _Base  # what super() will be
else:
    _Base = object

_RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
_NOT_DIVIDED = (4, 46) <= _RELEASE < (4, 48)  # by the accumulated micro-batches: an error of these releases
_HAS_SWITCH = hasattr(transformers.Trainer, "loss_is_scaled_for_ga")


class AnyTrainer(_Base):
    """In front of a ``transformers.Trainer`` subclass: its loss is a mean, divided by the number of micro-batches.

    Trainer divides the loss of a micro-batch by how many are accumulated, or does not, if the class behind is to have
    done so by ``num_items_in_batch``; which of the two depends on the model, on the batch's keys and on the release.
    A class that pays no heed to that number then has a gradient that is too large by the number of micro-batches. In
    :meth:`mean_step` it is not told that number, and its loss is always divided, once.
    """

    _divides_itself = False  # in a mean_step: Trainer will not
    _engine: Engine | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_renamed(kwargs, _names_of(super().__init__), "tokenizer", "processing_class"))

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """That of the class behind, also where it does not take all that this release of Trainer hands over."""
        behind = super().compute_loss
        names = _names_of(behind)
        if "num_items_in_batch" in kwargs and not ({"num_items_in_batch", "**"} & names):
            del kwargs["num_items_in_batch"]
        result = behind(model, inputs, *args, **kwargs)
        if not self._divides_itself:
            return result
        loss, *others = result if isinstance(result, tuple) else (result,)
        loss = loss / self._accumulated
        return (loss, *others) if others else loss

    def mean_step(self, step: Callable[..., Tensor], model: nn.Module, inputs: Any) -> Tensor:
        """A training step of the class behind, ``step(model, inputs)``, whose loss is divided once."""
        belief = "loss_is_scaled_for_ga" if _HAS_SWITCH else "model_accepts_loss_kwargs"  # 4.45 has none
        was = getattr(self, belief, None)
        if was is not None or _HAS_SWITCH:
            setattr(self, belief, False)
        has_function = not _HAS_SWITCH and getattr(self, "compute_loss_func", None) is not None
        self._divides_itself = _NOT_DIVIDED or has_function
        try:
            return step(model, inputs)
        finally:
            self._divides_itself = False
            if was is not None or _HAS_SWITCH:
                setattr(self, belief, was)

    @property
    def rows_per_step(self) -> int:
        """Of all processes and accumulated micro-batches."""
        if hasattr(self, "get_total_train_batch_size"):
            return self.get_total_train_batch_size(self.args)
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def mean_backward(self, loss: Tensor, count: int | None = None) -> None:
        """Runs ``loss / count`` backward; ``count`` None: the accumulated micro-batches, as for the other loss."""
        self.engine.backward(loss, self._accumulated if count is None else count)

    @property
    def engine(self) -> Engine:
        """How gradients are reached. It is another one when training has wrapped the model.

        Raises:
            RuntimeError: with DeepSpeed, before.
        """
        if self._engine is None or self._engine.model is not self.model_wrapped:
            is_deepspeed = getattr(self, "is_deepspeed_enabled", False)
            if is_deepspeed and not hasattr(self.model_wrapped, "zero_optimization_stage"):
                raise RuntimeError("retain_ema: with DeepSpeed gradients have a place only when training has begun")
            self._engine = engine_of(self.accelerator, self.model_wrapped, is_deepspeed)
        return self._engine

    @property
    def _accumulated(self) -> int:
        """What Trainer divides a loss by; until 4.54 as of a whole step, though an epoch's last one may be shorter."""
        return getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)


def _names_of(function: Callable[..., Any]) -> set[str]:
    """The parameters of a function; "**" if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def _renamed(kwargs: Mapping[str, Any], known: set[str], old: str, new: str) -> dict[str, Any]:
    """``kwargs`` with Trainer's own name, in this release, for what has had two; what is in ``known`` stays."""
    there = _names_of(transformers.Trainer.__init__)
    other = {old: new} if new in there else {new: old}
    return {name if name in known else other.get(name, name): value for name, value in kwargs.items()}
