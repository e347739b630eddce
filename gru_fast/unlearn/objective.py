"""``ObjectiveTrainer``: a ``transformers.Trainer`` on the objective of a method, in the form that GRUMixin asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from gru_fast.data.micro_batches import in_attended, in_labels, in_rows, micro_batches
from gru_fast.models.forward import logits_of
from gru_fast.models.head import HiddenStates, divergence_of, label_scores_of
from gru_fast.models.scores import LabelLogits, Scores, label_logits
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.config import UnlearnConfig
from gru_fast.unlearn.dual import DualVariable
from gru_fast.unlearn.hidden import hidden_states, num_layers
from gru_fast.unlearn.references import ReferenceModel, kl_divergence

_Part = Mapping[str, Tensor]
_Inputs = Mapping[str, _Part]


class ObjectiveTrainer(Trainer):
    """What stands behind GRUMixin in :class:`UnlearnTrainer`: the losses of ``args.method``.

    In a training step one graph at a time is in memory: each term of the objective is run backward before the next is
    run forward.
    """

    loss_is_scaled_for_ga = False  # our losses are means over a micro-batch, whatever the model's forward accepts
    gru_share: float  # set by GRUMixin in a training step, as is the loss that goes with it
    gru_retain_loss: Tensor | None

    def __init__(self, model: Any, args: UnlearnConfig, *positional: Any, **kwargs: Any) -> None:
        self.method = args.make_method()
        self.reference_model: ReferenceModel | None = None
        self._hidden_layer = 0  # of a method on hidden states
        self._in_training_step = False
        self._eval_sums: dict[str, Tensor] = {}
        self.dual = DualVariable(self.method) if self.method.has_dual else None
        super().__init__(model, args, *positional, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._freeze_the_rest()

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, in which the terms of the objective are run backward one by one."""
        self._in_training_step = True
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._in_training_step = False
        if self.dual is not None:
            self._step_dual(self.dual)
        return loss

    def _step_dual(self, dual: DualVariable) -> None:
        if self.gru_retain_loss is not None:  # else its own retain term has told it
            dual.see(self.gru_retain_loss)
        if self.accelerator.sync_gradients:
            self.note("dual", torch.tensor(dual.value))
            dual.step(int(self.state.epoch or 0), lambda loss: self.accelerator.reduce(loss, reduction="mean"))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: _Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of a micro-batch. In a training step the gradient of all but its last term is taken already."""
        loss = self._last_of_the_terms(model, inputs) if self._in_training_step else self._objective(model, inputs)
        return (loss, {}) if return_outputs else loss

    def compute_retain_loss(self, model: nn.Module, retain_inputs: _Part) -> Tensor:
        """Mean NLL over the label tokens of the retain rows."""
        return self._scores(model, retain_inputs).mean_nll

    def _objective(self, model: nn.Module, inputs: _Inputs) -> Tensor:
        weight = self.method.retain_nll_weight(self._batch(model, inputs))
        terms = [self._forget_loss(model, inputs), *self._retain_terms(model, inputs, weight)]
        return torch.stack(terms).sum()

    def _last_of_the_terms(self, model: nn.Module, inputs: _Inputs) -> Tensor:
        """The forget loss, its value that of the whole objective; the rest has been run backward."""
        # What of the retain NLL's weight GRU gives to g out of r is not computed again.
        weight = self.method.retain_nll_weight(self._batch(model, inputs)) - self.gru_share
        value = None if self.gru_retain_loss is None else self.gru_share * self.gru_retain_loss
        with self.engine.until_the_last():
            for term in self._retain_terms(model, inputs, weight):
                self.mean_backward(term)
                value = term.detach() if value is None else value + term.detach()
                del term
        loss = self._forget_loss(model, inputs)
        self.note("forget_loss", loss)
        return loss if value is None else loss + value

    def _forget_loss(self, model: nn.Module, inputs: _Inputs) -> Tensor:
        return self.method.forget_loss(self._batch(model, inputs))

    def _retain_terms(self, model: nn.Module, inputs: _Inputs, weight: float) -> Iterator[Tensor]:
        """What keeps, each with its own graph: ``weight`` times the retain NLL, and what else the method has."""
        asks_dual = self.dual is not None and self._in_training_step and not self.gru_options.follows_retain
        # Where another process may have some, all run it: shards are exchanged by all, or they wait for each other.
        has_gradient = weight != 0.0 or (self.method.weighs_by_batch and self.accelerator.num_processes > 1)
        if has_gradient or asks_dual:
            total = torch.zeros((), device=self.args.device)
            for share, piece in self.retain_pieces(inputs):
                with nullcontext() if has_gradient else torch.no_grad():
                    nll = share * self._batch(model, piece).retain.mean_nll
                total = total + nll.detach()
                if has_gradient:
                    yield weight * nll
            if self._in_training_step and not self.gru_options.follows_retain:
                self.note("retain_loss", total)
            if asks_dual and self.dual is not None:
                self.dual.see(total)
        attended = self.args.kl_positions == "attended" and not self.method.hidden_states
        for share, piece in self.retain_pieces(inputs, in_attended if attended else in_rows, trim=False):
            loss = self.method.retain_loss(self._batch(model, piece))
            if loss is not None:
                yield share * loss

    def retain_pieces(
        self, inputs: _Inputs, weigh: Callable[[_Part], Tensor] = in_labels, *, trim: bool = True
    ) -> list[tuple[Tensor | float, _Inputs]]:
        """A large retain part in pieces of as many rows as are forgotten; see :func:`micro_batches`."""
        part = inputs.get("retain")
        if part is None:
            return [(1.0, inputs)]
        pieces = micro_batches(part, self._train_batch_size, weigh, trim=trim)
        return [(share, {**inputs, "retain": piece}) for share, piece in pieces]

    # ---- the model ---------------------------------------------------------------------------------------------------

    def _freeze_the_rest(self) -> None:
        """Freezes, for good, what a method on hidden states does not train: it has no gradient, copy or e."""
        if not self.method.hidden_states:
            return
        model = self.accelerator.unwrap_model(self.model)
        layers = num_layers(model)
        self._hidden_layer = self.method.hidden_layer(layers)
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        trained = [self.method.trains(name, layers) for name, _ in named]
        if not any(trained):
            raise ValueError(
                f"{self.method.name}: expected some of the model's trainable parameters to be among those it trains, "
                f"got none of {len(named)} ({', '.join(n for n, _ in named[:3])}, ...); "
                + self.method.what_to_train([name for name, _ in named], layers)
            )
        for (_, param), is_trained in zip(named, trained, strict=True):
            param.requires_grad_(is_trained)

    def _batch(self, model: nn.Module, inputs: _Inputs) -> Batch:
        return Batch(
            inputs,
            lambda part: self._scores(model, part),
            (lambda part: self._divergence(model, part)) if self.method.reference_model else None,
            hidden=(lambda part: self._hidden_states(model, part)) if self.method.hidden_states else None,
            reference_hidden=self._reference_hidden_states if self.method.hidden_states else None,
            logits=(lambda part: self._label_logits(model, part)) if self.method.logits else None,
            reference_logits=self._reference_label_logits if self.method.logits else None,
            dual=None if self.dual is None else self.dual.value,
        )

    def _label_logits(self, model: nn.Module, part: _Part) -> LabelLogits:
        logits = logits_of(model, part)
        return label_logits(logits, part["labels"].to(logits.device))

    def _reference_label_logits(self, part: _Part) -> LabelLogits:
        logits = self._the_reference_model.logits(part)
        return label_logits(logits, part["labels"].to(logits.device))

    def _hidden_states(self, model: nn.Module, part: _Part) -> Tensor:
        return hidden_states(model, part, self._hidden_layer, inside=self.accelerator.unwrap_model(self.model))

    def _reference_hidden_states(self, part: _Part) -> Tensor:
        return self._the_reference_model.hidden_states(part, self._hidden_layer)

    def _scores(self, model: nn.Module, part: _Part) -> Scores:
        return label_scores_of(model, part)

    def _divergence(self, model: nn.Module, part: _Part) -> Tensor:
        reference = self._the_reference_model.to_compare(part)
        positions = part["attention_mask"] if self.args.kl_positions == "attended" else None
        if isinstance(reference, HiddenStates):
            return divergence_of(model, part, reference, positions)
        return kl_divergence(logits_of(model, part), reference, positions)

    @property
    def _the_reference_model(self) -> ReferenceModel:
        if self.reference_model is None:
            raise RuntimeError(f"{self.method.name}: no reference model yet; train() or evaluate() makes it")
        return self.reference_model

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The objective of one batch; its parts are added up for :meth:`evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            batch = self._batch(model, inputs)
            losses = {"forget_loss": self.method.forget_loss(batch)}
            objective = losses["forget_loss"]
            if "retain" in inputs:
                losses["retain_loss"] = batch.retain.mean_nll
            weight = self.method.retain_nll_weight(batch)
            if weight != 0.0:
                objective = objective + weight * batch.retain.mean_nll
            other = self.method.retain_loss(batch)
            if other is not None:
                objective = objective + other
        rows = float(next(iter(inputs.values()))["input_ids"].shape[0])
        for name, loss in losses.items():
            sums = torch.stack([loss.detach().float() * rows, loss.new_tensor(rows, dtype=torch.float32)])
            self._eval_sums[name] = self._eval_sums[name] + sums if name in self._eval_sums else sums
        return objective.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, with ``eval_forget_loss`` and, where there are retain rows, ``eval_retain_loss`` (a mean NLL)."""
        self._eval_sums = {}
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        for name, sums in self._eval_sums.items():
            total, rows = self.accelerator.reduce(sums, reduction="sum").tolist()
            output.metrics[f"{prefix}_{name}"] = total / rows
        return output

    def _track_num_input_tokens(self, inputs: _Inputs) -> None:
        """Trainer's count, of every part of a batch."""
        for part in inputs.values():
            super()._track_num_input_tokens(part)

    def floating_point_ops(self, inputs: _Inputs) -> int:
        """Trainer's estimate, of every part of a batch."""
        return sum(super(ObjectiveTrainer, self).floating_point_ops(part) for part in inputs.values())
