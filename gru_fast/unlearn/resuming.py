"""``WholeCheckpoints``: a ``Trainer`` that may be killed at any time, in any process, and goes on as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from gru_fast.runs.checkpoint import (
    TRAINER_STATE,
    Launch,
    check_fits,
    is_whole,
    last_checkpoint,
    remove_broken_after,
    remove_checkpoint,
)
from gru_fast.unlearn.any_trainer import AnyTrainer


class WholeCheckpoints(AnyTrainer):
    """In front of a ``transformers.Trainer`` subclass: its checkpoints are whole, or do not count.

    ``trainer_state.json`` is written last, when every process has written its part; nothing of an older checkpoint of
    the same step is left beside it, and older ones are deleted (``save_total_limit``) only after it.

    A run is resumed by any number of processes if every step takes the same rows in the same micro-batches; else it is
    refused, with the settings to change. (``ignore_data_skip=True``, which begins with other rows anyway, and
    ``auto_find_batch_size``, which chooses, leave that open.) Rows, weights, optimizer and e are then the run's own;
    the states of random numbers, for dropout, are those of the processes that were there before.
    """

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's ``train``. ``resume_from_checkpoint=True`` takes the newest whole checkpoint of the run.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: none that is whole, or one of another model or another way to launch.
            RuntimeError: with DeepSpeed, after a training or an evaluation by this trainer.
        """
        if self.is_deepspeed_enabled and hasattr(self.model_wrapped, "zero_optimization_stage"):
            raise RuntimeError(
                "train: expected a new trainer, since accelerate takes this one's DeepSpeed engine down, which it has "
                "from train() or evaluate(); make another one, of the model loaded anew, and evaluate after training"
            )
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self._before_training(checkpoint)
        return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

    def _before_training(self, checkpoint: Path | None) -> None:
        """For subclasses: ``checkpoint`` is sound, and not loaded yet."""

    def _checkpoint_to_resume(self, given: str | Path | bool | None) -> Path | None:
        found = last_checkpoint(self.args.output_dir) if given is True else given
        checkpoint = Path(found) if found else None
        self._check_all_resume(checkpoint)
        if checkpoint is None:
            if given is True:
                raise ValueError(f"{self.args.output_dir}: no complete checkpoint to resume from; start the run anew")
            return None
        check_fits(checkpoint, self.accelerator.unwrap_model(self.model))
        if not is_whole(checkpoint):
            raise ValueError(
                f"{checkpoint}: expected a whole checkpoint, but {TRAINER_STATE}, its last file, is missing or broken "
                "off: the run was stopped while it was saved; resume from an earlier one"
            )
        free = self.args.ignore_data_skip or self.args.auto_find_batch_size
        self._launch().check_goes_on(checkpoint, same_rows=not free)
        if self.args.should_save and checkpoint.resolve().parent == Path(self.args.output_dir).resolve():
            remove_broken_after(checkpoint)
        return checkpoint

    def _check_all_resume(self, checkpoint: Path | None) -> None:
        """All processes must go on from the same one, or they would train different models."""
        if self.args.world_size == 1:
            return
        from accelerate.utils import gather_object

        found = gather_object([checkpoint.name if checkpoint else "no checkpoint"])
        if len(set(found)) > 1:
            listed = ", ".join(f"{name} in process {index}" for index, name in enumerate(found))
            raise ValueError(
                f"{self.args.output_dir}: expected all processes to go on from the same checkpoint, got {listed}; put "
                "the run's folder where every machine sees it"
            )

    def _launch(self) -> Launch:
        rows = self.rows_per_step
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return Launch(
            processes=rows // (self._train_batch_size * self.args.gradient_accumulation_steps),
            rows_per_micro_batch=self._train_batch_size,
            rows_per_step=rows,
            fsdp=None if plugin is None else plugin.state_dict_type.name,
            zero=self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else None,
            rows=len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Trainer's, into a folder of its own: a run that went on from an earlier step may find one there."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Trainer's, the last that each process writes; the next file is the one that says the checkpoint is whole."""
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            self._launch().save(output_dir)
        self.accelerator.wait_for_everyone()
