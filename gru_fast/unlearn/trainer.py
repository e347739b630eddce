"""``UnlearnTrainer``: a ``transformers.Trainer`` that minimises an unlearning objective, with or without GRU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from gru_fast.unlearn.batch import Batch, Scores, label_scores
from gru_fast.unlearn.config import UnlearnConfig
from gru_fast.unlearn.data import PairCollator, UnlearnDataset
from gru_fast.unlearn.fsdp import sharded_modules
from gru_fast.unlearn.hidden import hidden_states, num_layers
from gru_fast.unlearn.mixin import GRUMixin
from gru_fast.unlearn.references import ReferenceLogProbs, ReferenceModel, fingerprint, kl_divergence

REFERENCE_LOG_PROBS = "reference_log_probs.json"  # in the run's folder and in each checkpoint
REFERENCE_MODEL = "reference_model.json"  # in each checkpoint of a method that compares with the first model

_Part = Mapping[str, Tensor]
_Inputs = Mapping[str, _Part]


class _ObjectiveTrainer(Trainer):
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
        super().__init__(model, args, *positional, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._freeze_the_rest()

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, in which the terms of the objective are run backward one by one."""
        self._in_training_step = True
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._in_training_step = False

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
        with self._until_the_last_term(model):
            for term in self._retain_terms(model, inputs, weight):
                self.accelerator.backward(term / self.current_gradient_accumulation_steps)
                value = term.detach() if value is None else value + term.detach()
                del term
        loss = self._forget_loss(model, inputs)
        self.note("forget_loss", loss)
        return loss if value is None else loss + value

    def _until_the_last_term(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The terms meet in .grad: processes exchange it once, with the last; not so FSDP2, which has shards there."""
        return nullcontext() if self.is_sharded else self.accelerator.no_sync(model)

    def _forget_loss(self, model: nn.Module, inputs: _Inputs) -> Tensor:
        return self.method.forget_loss(self._batch(model, inputs))

    def _retain_terms(self, model: nn.Module, inputs: _Inputs, weight: float) -> Iterator[Tensor]:
        """What keeps, each with its own graph: ``weight`` times the retain NLL, and what else the method has."""
        if weight != 0.0:
            nll = self._batch(model, inputs).retain.mean_nll
            if self._in_training_step and not self.gru_options.follows_retain:
                self.note("retain_loss", nll)
            yield weight * nll
        loss = self.method.retain_loss(self._batch(model, inputs))
        if loss is not None:
            yield loss

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
                f"got none of {len(named)} ({', '.join(n for n, _ in named[:3])}, ...); name them in method_options"
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
        )

    def _hidden_states(self, model: nn.Module, part: _Part) -> Tensor:
        return hidden_states(model, part, self._hidden_layer, inside=self.accelerator.unwrap_model(self.model))

    def _reference_hidden_states(self, part: _Part) -> Tensor:
        return self._the_reference_model.hidden_states(part, self._hidden_layer)

    def _logits(self, model: nn.Module, part: _Part) -> Tensor:
        return model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits

    def _scores(self, model: nn.Module, part: _Part) -> Scores:
        logits = self._logits(model, part)
        return label_scores(logits, part["labels"].to(logits.device), part.get("reference_log_probs"))

    def _divergence(self, model: nn.Module, part: _Part) -> Tensor:
        reference = self._the_reference_model.logits(part)
        positions = part["attention_mask"] if self.args.kl_positions == "attended" else None
        return kl_divergence(self._logits(model, part), reference, positions)

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

    def floating_point_ops(self, inputs: _Inputs) -> int:
        """Trainer's estimate, of every part of a batch."""
        return sum(super(_ObjectiveTrainer, self).floating_point_ops(part) for part in inputs.values())


class UnlearnTrainer(GRUMixin, _ObjectiveTrainer):
    """Unlearns: minimises ``args.method`` over an :class:`UnlearnDataset`, rectified with ``args.rectify``.

    Args:
        model: a causal LM of transformers, or a peft model around one.
        args: an :class:`UnlearnConfig`.
        data_collator: by default a :class:`PairCollator` with the tokenizer's pad token.
        train_dataset: an :class:`UnlearnDataset` with the parts that the method reads, and retain rows for GRU.
        eval_dataset: another, or a dictionary of them: ``evaluate()`` gives ``eval_loss`` (the objective),
            ``eval_forget_loss`` (the method's) and ``eval_retain_loss`` (mean NLL), for early stopping and the like.
        processing_class: the tokenizer.
        kwargs: whatever else ``Trainer`` takes, and ``gru=`` of :class:`GRUMixin`.

    Everything a Trainer does works as it does there; :class:`GRUMixin` says what is logged. ``forget_loss`` is the part
    of the objective that removes, ``retain_loss`` the mean NLL of the retain rows, logged where it is computed:
    with rectify or monitor, or where the objective holds it.

    Reference log-probabilities (NPO, DPO) are computed once, when training begins, and kept in the run's folder and in
    every checkpoint. A resumed run reads them there; for a KL term or RMU it needs the model that the run started from.
    """

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, UnlearnConfig):
            raise TypeError(f"args: expected an UnlearnConfig, got {type(args).__name__}")
        if data_collator is None:
            data_collator = PairCollator(_pad_token_id(processing_class, model))
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self.references: ReferenceLogProbs | None = None
        self._reference_fingerprint = ""
        for name, dataset in self._datasets().items():
            self._check_parts(name, dataset)
        if self.method.hidden_states and self.is_sharded:
            raise ValueError(
                f"{self.method.name}: not with FSDP2, whose modules expect to be run whole, not up to a layer; use "
                "DDP, or a method on the model's output, for example npo_gd"
            )
        self.add_callback(_UnlearnCallback(self))

    def retain_share_of(self, inputs: _Inputs) -> float:
        """The weight of the retain NLL in the objective."""
        return self.method.retain_nll_weight(self._batch(self.model, inputs))

    def _before_training(self, checkpoint: Path | None) -> None:
        if not self._is_sharded_later:
            self._prepare_reference_model(checkpoint)
        if checkpoint is not None or not self._is_sharded_later:
            self._prepare_references(checkpoint)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's ``evaluate``: ``eval_loss``, ``eval_forget_loss``, ``eval_retain_loss``."""
        if not self.is_in_train:  # before any training: the model is the reference
            if (self.method.reference_log_probs or self.method.reference_model) and self._is_sharded_later:
                raise RuntimeError(
                    f"evaluate: {self.method.name} compares with the model before unlearning, which FSDP2 has only "
                    "when training begins: call train() first"
                )
            self._prepare_reference_model(None)
            self._prepare_references(None)
        if isinstance(eval_dataset, torch.utils.data.Dataset):
            self._check_parts("eval_dataset", eval_dataset)
            self._attach("eval_dataset", eval_dataset, 1)
        return super().evaluate(eval_dataset, *args, **kwargs)

    @property
    def _is_sharded_later(self) -> bool:
        """Whether the model is for FSDP2, but not sharded yet."""
        return self.is_sharded and not sharded_modules(self.model)

    # ---- data --------------------------------------------------------------------------------------------------------

    def _datasets(self) -> dict[str, Any]:
        """The datasets this trainer was given, by name."""
        found = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        if isinstance(self.eval_dataset, Mapping):
            found |= {"eval_dataset": None, **{f'eval_dataset["{k}"]': v for k, v in self.eval_dataset.items()}}
        return {name: dataset for name, dataset in found.items() if dataset is not None}

    def _check_parts(self, name: str, dataset: Any) -> None:
        if self.method.reference_log_probs and not isinstance(dataset, UnlearnDataset):
            raise TypeError(
                f"{name}: expected an UnlearnDataset, since {self.method.name} reads reference log-probabilities, got "
                f"{type(dataset).__name__}"
            )
        needed = dict.fromkeys(self.method.parts)
        rectified = ""
        if name == "train_dataset" and self.gru_options.follows_retain:
            needed["retain"] = None
            rectified = " with rectify" if self.gru_options.rectify else " with monitor"
        there = dataset.parts if isinstance(dataset, UnlearnDataset) else tuple(dataset[0])
        missing = [part for part in needed if part not in there]
        if missing:
            raise ValueError(
                f"{name}: expected the parts {', '.join(needed)} for {self.method.name}{rectified}, got "
                f"{', '.join(there)}; give UnlearnDataset the {' and '.join(missing)} data"
            )

    # ---- the model before unlearning ---------------------------------------------------------------------------------

    def _prepare_reference_model(self, checkpoint: Path | None) -> None:
        """For a KL term, or hidden states. Must come before a checkpoint's weights do."""
        if not self.method.reference_model:
            return
        if self.reference_model is None:
            model = self.accelerator.unwrap_model(self.model)
            self._reference_fingerprint = fingerprint(model)
            self.reference_model = ReferenceModel(model)
        if checkpoint is not None:
            path = checkpoint / REFERENCE_MODEL
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; the checkpoint was not saved by {self.method.name} (or with "
                    "save_only_model): resume it as it was, or start anew"
                )
            saved = json.loads(path.read_text(encoding="utf-8"))["model"]
            if saved != self._reference_fingerprint:
                raise ValueError(
                    f"{checkpoint}: expected to resume with the model that the run started from (fingerprint "
                    f"{saved[:8]}), got another ({self._reference_fingerprint[:8]}); {self.method.name} compares with "
                    "it in every step"
                )

    def _prepare_references(self, checkpoint: Path | None) -> None:
        """For a method that reads reference log-probabilities. Computes them once, of all the data at hand."""
        parts = self.method.reference_log_probs
        if not parts:
            return
        if checkpoint is not None:
            self.references = ReferenceLogProbs.load(checkpoint / REFERENCE_LOG_PROBS)
        elif self.references is None:
            self.references = self._compute_references(parts)
        for name, dataset in self._datasets().items():
            self._attach(name, dataset, self._num_epochs() if name == "train_dataset" else 1)

    def _compute_references(self, parts: tuple[str, ...]) -> ReferenceLogProbs:
        found: ReferenceLogProbs | None = None
        for name, dataset in self._datasets().items():
            some = ReferenceLogProbs.compute(
                self.accelerator.unwrap_model(self.model),
                dataset,
                parts,
                self._num_epochs() if name == "train_dataset" else 1,
                self.args.reference_batch_size,
                _pad_token_id(self.processing_class, self.model),
                progress=not self.args.disable_tqdm and self.is_local_process_zero(),
                autocast=self.accelerator.autocast,
            )
            found = some if found is None else found.merge(some)
        if found is None:
            raise ValueError(f"train_dataset: expected one, since {self.method.name} reads reference log-probabilities")
        return found

    def _attach(self, name: str, dataset: Any, epochs: int) -> None:
        """Has ``dataset`` give out reference log-probabilities; they must be there already."""
        if self.references is None:
            return
        missing = self.references.missing(dataset, epochs)
        if missing:
            raise ValueError(
                f"{name}: {missing} of its sequences have no reference log-probability, which only the model before "
                "unlearning can give; train on the data the run began with, and give the trainer all evaluation data"
            )
        dataset.attach(self.references)

    def _num_epochs(self) -> int:
        """How many epochs training will begin, at most."""
        if self.args.max_steps <= 0:
            return max(1, math.ceil(self.args.num_train_epochs))
        rows_per_step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return math.ceil(self.args.max_steps / max(1, len(self.train_dataset) // rows_per_step))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.reference_model is None:  # with FSDP2: now the model is sharded, and still as it was
            self._prepare_reference_model(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_references(self, folder: str | None) -> None:
        if self.references is not None and self.args.should_save:
            self.references.save(Path(folder or ".") / REFERENCE_LOG_PROBS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        self._save_references(output_dir)
        if self.reference_model is not None:
            content = json.dumps({"model": self._reference_fingerprint})
            (Path(output_dir) / REFERENCE_MODEL).write_text(content, encoding="utf-8")


class _UnlearnCallback(TrainerCallback):
    """What a training run needs of its trainer at certain times."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Now a model for FSDP2 is sharded. (Before, processes may not even have its weights.)"""
        if self._trainer.reference_model is None:
            self._trainer._prepare_reference_model(None)
        if self._trainer.references is None:
            self._trainer._prepare_references(None)
        self._trainer._save_references(self._trainer.args.output_dir)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Tells the dataset which epoch it is: accelerate does so for some of its samplers only."""
        set_epoch = getattr(getattr(train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))


def _pad_token_id(tokenizer: Any, model: Any) -> int:
    """A token to pad with. Padding is neither attended nor scored: any serves."""
    for source in (tokenizer, getattr(model, "config", None)):
        for name in ("pad_token_id", "eos_token_id"):
            token = getattr(source, name, None)
            if isinstance(token, int):
                return token
    return 0
