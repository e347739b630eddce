"""GRUMixin under the transformers that is installed, from 4.45 on, and in front of classes that know little of it.

CI runs this file with an old transformers too: nothing here may need UnlearnTrainer, which wants 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from gru_fast.unlearn import GRUMixin, GRUOptions, PairCollator, UnlearnConfig, UnlearnDataset

IS_FIVE = int(transformers.__version__.split(".")[0]) >= 5
LENGTH = 7  # of every row: means of micro-batches are then of as many labels


class WithoutTheNumber(Trainer):
    """As open-unlearning's trainers have it: no num_items_in_batch."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False) -> Any:
        outputs = model(**{name: inputs["forget"][name] for name in ("input_ids", "attention_mask", "labels")})
        return (-outputs.loss, outputs) if return_outputs else -outputs.loss


class NoHeed(WithoutTheNumber):
    """Takes it and pays no heed: too large by the accumulated micro-batches, in releases that leave it to the class."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return super().compute_loss(model, inputs, return_outputs)


class Heeds(WithoutTheNumber):
    """A sum over all labels of the step, if it is told their number; else a mean."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs)
        if num_items_in_batch is not None:
            loss = loss * (inputs["labels"][:, 1:] != -100).sum() / num_items_in_batch
        return (loss, {}) if return_outputs else loss


class WithLabels(PairCollator):
    """Labels beside the parts too: then Trainer counts them, and leaves the division to the class behind."""

    def __call__(self, items: Any) -> Any:
        batch = super().__call__(items)
        return {**batch, "labels": batch["forget"]["labels"]}


def data(count: int = 8) -> UnlearnDataset:
    def rows(seed: int) -> list[Any]:
        ids = torch.randint(3, tiny.VOCAB_SIZE, (count, LENGTH), generator=torch.Generator().manual_seed(seed)).tolist()
        return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in ids]

    return UnlearnDataset(rows(1), rows(2))


def make(cls: Any, tmp_path: Path, collator: Any = None, **settings: Any) -> Any:
    quiet: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 1, "optim": "sgd",
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1,
        "save_strategy": "no", "remove_unused_columns": False, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    own = {name: settings.pop(name) for name in ("gru", "tokenizer", "processing_class") if name in settings}
    args = TrainingArguments(str(tmp_path), **{**quiet, **settings})
    collator = PairCollator(0) if collator is None else collator
    return cls(model=tiny.llama(), args=args, data_collator=collator, train_dataset=data(), **own)


def with_gru(behind: Any, **options: Any) -> Any:
    return type("WithGRU", (GRUMixin, behind), {"gru": GRUOptions(**{"gamma": 1.0, **options})})


def by_hand(part: str, sign: float, dataset: UnlearnDataset) -> Tensor:
    """The gradient of the mean loss of all rows, in one batch."""
    model = tiny.llama()
    batch = PairCollator(0)([dataset[i] for i in range(len(dataset))])[part]
    grads = torch.autograd.grad(sign * model(**batch).loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("split", [(1, 8), (2, 4), (8, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("collator", [PairCollator(0), WithLabels(0)], ids=["parts", "labels"])
@pytest.mark.parametrize("behind", [WithoutTheNumber, NoHeed, Heeds])
def test_g_and_r_have_one_scale(behind: Any, collator: Any, split: tuple[int, int], tmp_path: Path) -> None:
    """That of means over the rows of the step; so tau has one meaning too."""
    size, accumulated = split
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    trainer = make(with_gru(behind, tau=1.5), tmp_path, collator, **sizes)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "cos" in entry]
    g, r = by_hand("forget", -1.0, data()), by_hand("retain", 1.0, data())
    assert entry["norm_before"] == pytest.approx(float(g.norm()), rel=1e-4)
    assert entry["norm_ema"] == pytest.approx(float(r.norm()), rel=1e-4)
    assert entry["norm_after"] == pytest.approx(1.5, rel=1e-4)
    assert g.norm() > 1.5
    moved = [
        (a - b).detach().norm() for a, b in zip(trainer.model.parameters(), tiny.llama().parameters(), strict=True)
    ]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.05 * 1.5, rel=1e-3)


@pytest.mark.parametrize("behind", [WithoutTheNumber, NoHeed])
def test_switched_off_it_is_the_trainer_behind(behind: Any, tmp_path: Path) -> None:
    """But for the number that some of them do not take: there it is the same as with a class that does."""
    off = make(with_gru(behind, rectify=False), tmp_path, WithLabels(0))
    plain = make(NoHeed, tmp_path, WithLabels(0))
    for trainer in (off, plain):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(off.model.parameters(), plain.model.parameters(), strict=True))


def test_what_trainer_believes_of_the_class_behind_is_as_before(tmp_path: Path) -> None:
    trainer = make(with_gru(NoHeed), tmp_path)
    names = ("loss_is_scaled_for_ga", "model_accepts_loss_kwargs")
    before = [getattr(trainer, name, None) for name in names]
    trainer.train()
    assert [getattr(trainer, name, None) for name in names] == before
    batch = trainer.data_collator([trainer.train_dataset[0]])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=3)  # as evaluation calls it
    other, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.item() == other.item() == -outputs.loss.item()


def test_a_step_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    class Fails(WithoutTheNumber):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False) -> Any:
            raise FloatingPointError

    trainer = make(with_gru(Fails), tmp_path)
    before = [getattr(trainer, n, None) for n in ("loss_is_scaled_for_ga", "model_accepts_loss_kwargs")]
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert [getattr(trainer, n, None) for n in ("loss_is_scaled_for_ga", "model_accepts_loss_kwargs")] == before
    assert not trainer.retain_ema.pending.is_begun


@pytest.mark.parametrize("name", ["tokenizer", "processing_class"])
def test_the_tokenizer_by_either_name(name: str, tmp_path: Path) -> None:
    given = object()
    trainer = make(with_gru(WithoutTheNumber), tmp_path, **{name: given})
    assert (trainer.processing_class if IS_FIVE else trainer.tokenizer) is given

    class Own(WithoutTheNumber):
        def __init__(self, *args: Any, tokenizer: Any = None, processing_class: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.own = (tokenizer, processing_class)

    trainer = make(with_gru(Own), tmp_path, **{name: given})
    assert trainer.own == ((given, None) if name == "tokenizer" else (None, given))  # it says what it takes


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning")
def test_a_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_FIVE:  # old releases read their own file of random states in a way that torch has refused since 2.6
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    settings = {
        "gradient_accumulation_steps": 1, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2,
        "optim": "adamw_torch",
    }  # fmt: skip
    cls = with_gru(WithoutTheNumber, gamma=0.3, warm_up_retain=2)
    whole = make(cls, tmp_path, **settings)
    whole.train()
    assert whole.retain_ema.step == 5  # four steps, and what it began with
    resumed = make(cls, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.retain_ema.step == 5
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(resumed.retain_ema.tensors, whole.retain_ema.tensors, strict=True))


def test_warm_up_takes_batches_of_the_dataset_in_an_order_of_their_own(tmp_path: Path) -> None:
    """4 batches of 2 are all 8 rows: their mean is the whole gradient, whatever the order."""
    trainer = make(with_gru(NoHeed, gamma=1e-6, warm_up_retain=4), tmp_path)
    trainer.train()
    found = torch.cat([e.flatten() for e in trainer.retain_ema.tensors])
    expected = by_hand("retain", 1.0, data())
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([data()[0]] * 8)

    trainer = make(with_gru(NoHeed, gamma=0.5, warm_up_retain=1), tmp_path, max_steps=1)
    trainer.train_dataset = Stream()
    with pytest.raises(TypeError, match="warm_up_retain: expected a train_dataset that can be indexed, got Stream"):
        trainer.train()


def test_what_needs_transformers_5_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru_fast.unlearn.config.transformers.__version__", "4.57.3")
    with pytest.raises(ValueError, match=r"transformers: expected 5 or later, got 4\.57\.3; update it \(GRUMixin"):
        UnlearnConfig(str(tmp_path), use_cpu=True)
