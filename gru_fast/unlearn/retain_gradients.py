"""The half of a step that is about what to keep: retain gradients, in pieces where there are many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import measure
from gru_fast.core.retain_gradient import RetainGradient
from gru_fast.unlearn.any_trainer import AnyTrainer
from gru_fast.unlearn.config import GRUOptions
from gru_fast.unlearn.warm_up import batches_of

_MODEL_INPUTS = ("input_ids", "attention_mask", "labels")
_Pieces = Sequence[tuple[Tensor | float, Mapping[str, Any]]]


class RetainGradients(AnyTrainer):
    """Takes the retain gradients of a Trainer's batches into a moving average; :class:`GRUMixin` makes use of it.

    Attributes:
        gru_options: how.
        gru_share: of this micro-batch's retain gradient, what g gets without ``compute_loss``.
        gru_retain_loss: of this micro-batch, without gradient.
    """

    gru_options: GRUOptions
    gru_share: float = 0.0
    gru_retain_loss: Tensor | None = None
    _ema: RetainEMA | RetainGradient | None = None
    _shares_differ: bool = False  # whether retain_share_of goes by the rows of the batch
    _step_share: float | None = None  # of the step in progress, where all its micro-batches must agree

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def retain_loss_of(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The retain loss of a micro-batch, a mean; r is its gradient."""
        if not isinstance(inputs, Mapping) or inputs.get("retain") is None:
            got = ", ".join(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(f'batch: expected a part "retain" (GRU needs data to keep in every batch), got {got}')
        part = inputs["retain"]
        if isinstance(part, Mapping) and all(name in part for name in _MODEL_INPUTS):
            part = {name: part[name] for name in _MODEL_INPUTS}  # collators add indices and the like
        own = getattr(self, "compute_retain_loss", None)
        return model(**part).loss if own is None else own(model, part)

    def retain_micro_batches(self, inputs: Mapping[str, Any]) -> _Pieces:
        """``inputs`` in pieces whose retain losses are run one by one, each with its share of the whole's mean."""
        return [(1.0, inputs)]

    def warm_up_batches(self, count: int) -> Iterable[Mapping[str, Any]]:
        """``count`` batches for this process with the rows to keep that the moving average begins with."""
        return batches_of(
            self.train_dataset,
            self.data_collator,
            count,
            self._train_batch_size,
            seed=self.args.seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def retain_share_of(self, inputs: Mapping[str, Any]) -> float:
        """How much of the very loss of :meth:`retain_loss_of` the objective contains.

        What ``self.gru_share`` says of it then, ``compute_loss`` leaves out: g gets it from r.
        """
        return 0.0

    @property
    def retain_ema(self) -> RetainEMA | RetainGradient:
        """The moving average of retain gradients, or where none is kept those of a step; made when first asked for."""
        if self._ema is None:
            params = self.engine.named_parameters()
            options = self.gru_options
            if options.keeps_average:
                sets = 1 + len(options.retain_sets or [])
                self._ema = RetainEMA(params, options.ema_torch_dtype, seed=self.args.seed, sets=sets)
            else:
                self._ema = RetainGradient(params)
        return self._ema

    # ---- one micro-batch ---------------------------------------------------------------------------------------------

    def take_retain_gradient(self, model: nn.Module, inputs: Any) -> None:
        """r of a micro-batch, into the step in progress; what g will have of it is then ``gru_share``."""
        pieces = self.retain_micro_batches(inputs)
        self.gru_share = self._agreed_share(self.retain_share_of(inputs))
        self.gru_retain_loss = self._retain_backward(model, pieces, self.gru_options.ema_gamma, self.gru_share)
        self.note("retain_loss", self.gru_retain_loss)
        for place, part in enumerate(self.gru_options.retain_sets or [], 1):
            if not isinstance(inputs, Mapping) or inputs.get(part) is None:
                got = ", ".join(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
                raise ValueError(f'batch: expected a part "{part}", which retain_sets names, got {got}')
            own: _Pieces = [(1.0, {**inputs, "retain": inputs[part]})]
            loss = self._retain_backward(model, own, self.gru_options.ema_gamma, place=place)
            self.note(f"retain_loss_{part}", loss)

    def _retain_backward(
        self,
        model: nn.Module,
        pieces: _Pieces,
        gamma: float,
        share: float = 0.0,
        place: int = 0,
        count: int | None = None,
    ) -> Tensor:
        """Runs the retain loss of the pieces backward one by one, as :meth:`mean_backward` does; returns it.

        Args:
            gamma: of the average that takes the gradients in, that of the set ``place``. ``share``: see ``gru_share``.
        """
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers with two sets of weights
            self.optimizer.train()
        if not pieces:
            raise RuntimeError("retain_micro_batches: expected at least one piece of a batch, got none")
        apart = self.gru_options.stream and self.engine.exchanges_late
        total: Tensor | None = None
        for group in [[piece] for piece in pieces] if apart else [pieces]:
            with self._taking_in(gamma, share, place):
                loss = self._backward_of(model, group, len(pieces) > 1, count)
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def _backward_of(self, model: nn.Module, pieces: _Pieces, has_parts: bool, count: int | None) -> Tensor:
        total: Tensor | None = None
        for place, (share, piece) in enumerate(pieces, 1):
            with nullcontext() if place == len(pieces) else self.engine.until_the_last():
                with self.compute_loss_context_manager():
                    loss = self.retain_loss_of(model, piece).mean()  # a mean over devices under DataParallel
                    loss = loss * share if has_parts else loss
                self.mean_backward(loss, count)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    @contextmanager
    def _taking_in(self, gamma: float, share: float, place: int) -> Iterator[None]:
        """Inside, backward gives retain gradients of one of the sets."""
        ema, scaler = self.retain_ema, self.accelerator.scaler
        if not isinstance(ema, RetainEMA):
            with ema.collect(scaler, share=share):
                yield
        elif not self.gru_options.stream:
            with ema.collect(scaler, share=share, set=place):
                yield
        else:
            with (
                self.engine.streaming(ema.params) as exchange,
                ema.stream(gamma, scaler, share=share, set=place, exchange=exchange),
            ):
                yield

    def warm_up(self, model: nn.Module) -> None:
        """e becomes the mean retain gradient of ``warm_up_retain`` batches, at the weights as they are."""
        count, ema, scaler = self.gru_options.warm_up_retain, self.retain_ema, self.accelerator.scaler
        while True:
            with self.engine.exchanging():  # this may be a micro-batch of which accelerate puts the exchange off
                for place, batch in enumerate(self.warm_up_batches(count), 1):
                    pieces = self.retain_micro_batches(self._prepare_inputs(batch))
                    with nullcontext() if place == count else self.engine.until_the_last():
                        self._retain_backward(model, pieces, 1.0, count=count)
            if not measure(ema.params, ema, 1.0).nonfinite:
                return
            if scaler is None or scaler.get_scale() <= 1.0:
                raise RuntimeError(
                    "warm_up_retain: NaN or Inf in the retain gradient before the first step; load the model in "
                    "bfloat16 or float32, and look at the rows to keep"
                )
            scaler.update(scaler.get_scale() / 2)  # a float16 overflow: as the scaler itself would

    def _agreed_share(self, share: float) -> float:
        """The share that can be taken from r, which is the processes' mean, and so the same in all of them.

        With stream() each micro-batch's own, else one for the whole step.
        """
        if self.gru_options.stream and not self._shares_differ:
            return share
        if self._step_share is None or self.gru_options.stream:
            self._step_share = share
            if self.accelerator.num_processes > 1:  # all processes add the same mean of r
                tensor = torch.tensor([share], dtype=torch.float64, device=self.accelerator.device)
                torch.distributed.broadcast(tensor, src=0)
                self._step_share = float(tensor)
        return self._step_share
