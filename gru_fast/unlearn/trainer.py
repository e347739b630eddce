"""``UnlearnTrainer``: a ``transformers.Trainer`` that minimises an unlearning objective, with or without GRU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from gru_fast.data.pairs import PairCollator, UnlearnDataset
from gru_fast.models.four_bit import NOT_ZERO_3, check_trainable, is_four_bit
from gru_fast.models.identity import fingerprint
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.checkpoint import Launch
from gru_fast.unlearn.config import UnlearnConfig, raise_all, splits_sequences
from gru_fast.unlearn.engines.fsdp import sharded_modules
from gru_fast.unlearn.lost_steps import LostSteps
from gru_fast.unlearn.mixin import GRUMixin
from gru_fast.unlearn.objective import ObjectiveTrainer
from gru_fast.unlearn.references import ReferenceLogProbs, ReferenceModel

REFERENCE_LOG_PROBS = "reference_log_probs.json"  # in the run's folder and in each checkpoint
REFERENCE_MODEL = "reference_model.json"  # in each checkpoint of a method that compares with the first model


class UnlearnTrainer(GRUMixin, ObjectiveTrainer):
    """Unlearns: minimises ``args.method`` over an :class:`UnlearnDataset`, rectified with ``args.rectify``.

    Args:
        model: a causal LM of transformers, or a peft model around one.
        args: an :class:`UnlearnConfig`.
        data_collator: by default a :class:`PairCollator` with the tokenizer's pad token.
        train_dataset: an :class:`UnlearnDataset` with the parts that the method reads, and retain rows for GRU.
        eval_dataset: another, or a dictionary of them: ``evaluate()`` gives ``eval_loss`` (the objective),
            ``eval_forget_loss`` (the method's) and ``eval_retain_loss`` (mean NLL), for early stopping and the like.
        processing_class: the tokenizer.
        kwargs: whatever else ``Trainer`` takes, and ``gru=`` of :class:`GRUMixin`; not what would have no effect, since
            losses are the method's and an evaluation gives them alone.

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
        _check_arguments(model, kwargs)
        if data_collator is None:
            data_collator = PairCollator(padding_id(model, processing_class))
        evaluated = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
        _fit(model, train_dataset, *evaluated)  # before Trainer makes the output folder
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self._check_engine()
        self.references: ReferenceLogProbs | None = None
        self._shares_differ = self.method.weighs_by_batch
        self._reference_fingerprint = ""
        for name, dataset in self._datasets().items():
            self._check_parts(name, dataset)
        self._check_retain_batch_size()
        if self.is_for_zero3 and is_four_bit(self.accelerator.unwrap_model(self.model)):
            raise ValueError(NOT_ZERO_3)
        if self.method.hidden_states and self.is_for_zero3:
            raise ValueError(
                f"{self.method.name}: not with ZeRO-3, whose modules expect to be run whole, not up to a layer; use "
                "FSDP2, DDP or ZeRO-2, or a method on the model's output, for example npo_gd"
            )
        self.add_callback(_UnlearnCallback(self._begin_unlearning))
        if not self.is_deepspeed_enabled:  # which steps in float32 whatever the weights are in
            self.add_callback(LostSteps(self.log))

    def retain_share_of(self, inputs: Mapping[str, Any]) -> float:
        """The weight of the retain NLL in the objective."""
        return self.method.retain_nll_weight(self._batch(self.model, inputs))

    def retain_micro_batches(self, inputs: Mapping[str, Any]) -> Sequence[tuple[Tensor | float, Mapping[str, Any]]]:
        """Pieces of as many rows to keep as are forgotten, each with its share of the label tokens."""
        return self.retain_pieces(inputs)

    def _before_training(self, checkpoint: Path | None) -> None:
        if not self._is_sharded_later:
            self._prepare_reference_model(checkpoint)
        if checkpoint is not None or not self._is_sharded_later:
            self._prepare_references(checkpoint)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's ``evaluate``: ``eval_loss``, ``eval_forget_loss``, ``eval_retain_loss``."""
        self._prepare_evaluation("evaluate", "eval_dataset", eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer's ``predict``: no predictions, but the losses of :meth:`evaluate`, ``test_loss`` and so on."""
        self._prepare_evaluation("predict", "test_dataset", test_dataset)
        return super().predict(test_dataset, *args, **kwargs)

    def _prepare_evaluation(self, caller: str, name: str, dataset: Any) -> None:
        if not self.is_in_train:  # before any training: the model is the reference
            if (self.method.reference_log_probs or self.method.reference_model) and self._is_sharded_later:
                raise RuntimeError(
                    f"{caller}: {self.method.name} compares with the model before unlearning, which FSDP2 and "
                    "ZeRO-3 have only when training begins: call train() first"
                )
            self._prepare_reference_model(None)
            self._prepare_references(None)
        if isinstance(dataset, torch.utils.data.Dataset):
            self._check_parts(name, dataset)
            _fit(self.model, dataset)
            self._attach(name, dataset, 1)

    @property
    def _is_sharded_later(self) -> bool:
        """Whether the model is for FSDP2 or ZeRO-3, but not sharded yet."""
        if self.is_for_zero3:
            return not hasattr(self.model_wrapped, "zero_optimization_stage")
        return self.is_sharded and not sharded_modules(self.model)

    @property
    def is_for_zero3(self) -> bool:
        """Whether the model is trained with ZeRO-3: it may be cut up by now, or be so when training begins."""
        return bool(self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3)

    # ---- data --------------------------------------------------------------------------------------------------------

    def _datasets(self) -> dict[str, Any]:
        """The datasets this trainer was given, by name."""
        found = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        if isinstance(self.eval_dataset, Mapping):
            found |= {"eval_dataset": None, **{f'eval_dataset["{k}"]': v for k, v in self.eval_dataset.items()}}
        return {name: dataset for name, dataset in found.items() if dataset is not None}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Trainer's; what goes by length goes by that of the rows to forget."""
        return super()._get_train_sampler(
            self._with_lengths(self.train_dataset if train_dataset is None else train_dataset)
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Likewise."""
        return super()._get_eval_sampler(self._with_lengths(eval_dataset))

    def _with_lengths(self, dataset: Any) -> Any:
        """What a sampler that goes by length can read lengths from."""
        by_length = self.args.train_sampling_strategy in {"group_by_length", "batch_rebalance"}
        return dataset.forget if by_length and isinstance(dataset, UnlearnDataset) else dataset

    def _check_engine(self) -> None:
        """Refuses, with or without GRU, what cannot run an objective of several parts."""
        raise_all(splits_sequences(getattr(self.accelerator, "parallelism_config", None)))

    def get_train_dataloader(self) -> Any:
        """Trainer's; with ``retain_batch_size``, of batches with so many rows to keep."""
        if self.args.retain_batch_size is None:
            return super().get_train_dataloader()
        rows = self._retain_rows
        self.train_dataset.draw_retain(math.ceil(rows / self._train_batch_size))
        of_evaluation: Any = self.data_collator  # type: ignore[has-type]
        self.data_collator = replace(of_evaluation, retain_rows=rows)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = of_evaluation

    def warm_up_batches(self, count: int) -> Iterable[Mapping[str, Any]]:
        """Rows to keep drawn as those of an epoch before the first."""
        if not isinstance(self.train_dataset, UnlearnDataset):
            yield from super().warm_up_batches(count)
            return
        for batch in range(count):
            first = (batch * self.accelerator.num_processes + self.accelerator.process_index) * self._retain_rows
            draws = range(first, first + self._retain_rows)
            yield self.data_collator([{"retain": self.train_dataset.encoded("retain", draw, -1)} for draw in draws])

    @property
    def _retain_rows(self) -> int:
        """Rows to keep in a whole batch."""
        size = self.args.retain_batch_size
        return self._train_batch_size if size is None else size * max(1, self.args.n_gpu)

    def _launch(self) -> Launch:
        return replace(super()._launch(), retain_rows=self.args.retain_batch_size)

    def _check_retain_batch_size(self) -> None:
        if self.args.retain_batch_size is None or self.train_dataset is None:
            return
        for name, wanted in (("train_dataset", UnlearnDataset), ("data_collator", PairCollator)):
            found = getattr(self, name)
            if not isinstance(found, wanted):
                raise TypeError(
                    f"{name}: expected {'an' if wanted is UnlearnDataset else 'a'} {wanted.__name__} with "
                    f"retain_batch_size, got {type(found).__name__}; leave retain_batch_size out, and let its batches "
                    "hold as many rows to keep as you want"
                )
        if "retain" not in self.train_dataset.parts:
            raise ValueError("retain_batch_size: no rows to keep in train_dataset; give UnlearnDataset the retain data")

    def _check_parts(self, name: str, dataset: Any) -> None:
        if self.method.reference_log_probs and not isinstance(dataset, UnlearnDataset):
            raise TypeError(
                f"{name}: expected an UnlearnDataset, since {self.method.name} reads reference log-probabilities, got "
                f"{type(dataset).__name__}"
            )
        needed = dict.fromkeys(self.method.parts)
        rectified = ""
        if name == "train_dataset" and self.gru_options.follows_retain:
            needed |= dict.fromkeys(["retain", *(self.gru_options.retain_sets or [])])
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
            self.reference_model = ReferenceModel(model, offload=self.args.offload_reference)
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
                padding_id(self.model, self.processing_class),
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.dual is not None:
            self.dual.load(checkpoint)

    def _begin_unlearning(self) -> None:
        """Now a model for FSDP2 is sharded. (Before, processes may not even have its weights.)"""
        if self.reference_model is None:
            self._prepare_reference_model(None)
        if self.references is None:
            self._prepare_references(None)
        self._save_references(self.args.output_dir)
        if self.dual is not None:
            self.dual.forget()  # of a run that was interrupted

    def _save_references(self, folder: str | None) -> None:
        if self.references is not None and self.args.should_save:
            self.references.save(Path(folder or ".") / REFERENCE_LOG_PROBS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        self._save_references(output_dir)
        if self.dual is not None:
            self.dual.save(output_dir)
        if self.reference_model is not None:
            content = json.dumps({"model": self._reference_fingerprint})
            (Path(output_dir) / REFERENCE_MODEL).write_text(content, encoding="utf-8")


class _UnlearnCallback(TrainerCallback):
    """What a training run needs of its trainer at certain times."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Tells the dataset which epoch it is: accelerate does so for some of its samplers only."""
        set_epoch = getattr(getattr(train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))


_UNUSED = {
    "compute_loss_func": "the loss is that of args.method; write a method (docs/how-it-works/method.md)",
    "compute_metrics": "an evaluation while training gives losses alone; evaluate in a callback, or with gru-fast eval",
    "preprocess_logits_for_metrics": "an evaluation while training gives losses alone, and no logits",
    "model_init": "references are of one model; give model=, and search with gru-fast sweep",
}


def _check_arguments(model: Any, others: Mapping[str, Any]) -> None:
    """Refuses arguments of Trainer that would have no effect, or another than there."""
    raise_all([f"{name}: expected none: {why}" for name, why in _UNUSED.items() if others.get(name) is not None])
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model: expected a causal LM that is loaded (AutoModelForCausalLM.from_pretrained), got "
            f"{type(model).__name__}"
        )
    check_trainable(model)


def _fit(model: Any, *datasets: Any) -> None:
    """Refuses rows that the model cannot read."""
    for dataset in datasets:
        if isinstance(dataset, UnlearnDataset):
            dataset.fit(limits_of(model))
