"""Fine-tuning before unlearning: the model that is to forget, and the one retrained without what it should forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainingArguments

from gru_fast.data.sequences import Encoded, SequenceCollator
from gru_fast.models.four_bit import check_trainable
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.unlearn.config import errors_of_training, raise_all
from gru_fast.unlearn.lora_start import LoraStart
from gru_fast.unlearn.lost_steps import LostSteps
from gru_fast.unlearn.resuming import WholeCheckpoints

_inherited = {field.name: field for field in dataclasses.fields(TrainingArguments)}


def _default(name: str, default: Any) -> Any:
    """A field of TrainingArguments with another default; its help text stays."""
    return dataclasses.field(default=default, metadata=_inherited[name].metadata)


@dataclass
class FinetuneConfig(TrainingArguments):
    """``transformers.TrainingArguments`` with the defaults of the original TOFU code.

    5 epochs in batches of 32, AdamW with weight decay 0.01, the learning rate rising over the first epoch and falling
    linearly to 0 after it. Its peak is 1e-5 for Llama-2-7B; Phi-1.5 takes 2e-5.

    >>> FinetuneConfig("runs/tofu-full", learning_rate=2e-5)
    """

    learning_rate: float = _default("learning_rate", 1e-5)
    lr_scheduler_type: str = _default("lr_scheduler_type", "linear")
    warmup_steps: float = _default("warmup_steps", 0.2)  # below 1 it is a share of all steps: 1 epoch of 5
    weight_decay: float = _default("weight_decay", 0.01)
    num_train_epochs: float = _default("num_train_epochs", 5.0)
    per_device_train_batch_size: int = _default("per_device_train_batch_size", 4)
    gradient_accumulation_steps: int = _default("gradient_accumulation_steps", 8)
    logging_steps: float = _default("logging_steps", 10)
    remove_unused_columns: bool | None = _default("remove_unused_columns", False)
    report_to: str | list[str] | None = dataclasses.field(default="none", metadata=_inherited["report_to"].metadata)
    dataloader_pin_memory: bool = _default("dataloader_pin_memory", True)

    def __post_init__(self) -> None:
        raise_all(errors_of_training(self))
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns: expected False, since rows are tokenized already")
        if self.dataloader_pin_memory and self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin for: torch would only warn


class FinetuneTrainer(WholeCheckpoints, Trainer):
    """``transformers.Trainer`` with :class:`~gru_fast.unlearn.resuming.WholeCheckpoints`."""


class SameRowsTrainer(FinetuneTrainer):
    """Every process takes every row, so that a step is that of one process, and all have its weights.

    For short trainings between evaluations that processes share.
    """

    def get_train_dataloader(self) -> Any:
        """The batches that one process would have, in its order."""
        from accelerate.data_loader import prepare_data_loader
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self.train_dataset, batch_size=self.args.train_batch_size, shuffle=True, collate_fn=self.data_collator
        )
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=self.args.accelerator_config.use_seedable_sampler,
        )


def finetune_trainer(
    model: Any,
    config: FinetuneConfig,
    rows: Sequence[Encoded],
    tokenizer: Any,
    cls: type[FinetuneTrainer] = FinetuneTrainer,
) -> FinetuneTrainer:
    """A trainer on the mean negative log-likelihood per label token.

    The mean is over all label tokens of a step, as transformers takes it; the original code took the mean of the
    micro-batches' means.

    Args:
        model: a causal LM.
        rows: ``{"input_ids", "labels"}``, -100 where a label is not learned.
        tokenizer: of the model; saved with it.
        cls: the trainer's class.

    Raises:
        ValueError: no rows, or one that the model cannot read; a model in 4 bits that cannot be trained so.
    """
    if not rows:
        raise ValueError("rows: expected at least one row to fine-tune on, got an empty set")
    limits_of(model).check_rows("rows", rows)
    trainer = cls(
        model=model,
        args=config,
        train_dataset=rows,
        data_collator=SequenceCollator(padding_id(model, tokenizer)),
        processing_class=tokenizer,
    )
    is_spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    check_trainable(model, refused="FSDP or DeepSpeed in finetuning, which was not tried" if is_spread else "")
    trainer.add_callback(LostSteps(trainer.log))
    accelerator = trainer.accelerator
    trainer.add_callback(LoraStart(accelerator.reduce, lambda: bool(accelerator.optimizer_step_was_skipped)))
    return trainer
