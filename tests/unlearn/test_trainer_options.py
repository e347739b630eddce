"""Options of ``TrainingArguments`` whose meaning depends on what a batch is: kept with batches of parts, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.utils import ParallelismConfig
from transformers import Trainer, TrainerCallback, TrainingArguments

from gru_fast.unlearn import GRUMixin, GRUOptions, UnlearnTrainer


def made(tmp_path: Path, *, collator: Any = None, callbacks: Any = None, **settings: Any) -> UnlearnTrainer:
    """A trainer of the tiny model with NPO, a retain loss and GRU, and rows to evaluate on."""
    return UnlearnTrainer(
        tiny.llama(),
        tiny.config(tmp_path, **{"method": "npo_gd", "rectify": True, **settings}),
        collator,
        tiny.dataset(),
        tiny.dataset(6, 6, 9),
        callbacks=callbacks,
    )


def trained(tmp_path: Path, **settings: Any) -> UnlearnTrainer:
    trainer = made(tmp_path, **settings)
    trainer.train()
    return trainer


def weights(trainer: UnlearnTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, dict[str, float]]:
    """Weights and evaluation without any of the options."""
    trainer = trained(tmp_path_factory.mktemp("plain"))
    return weights(trainer), losses(trainer.evaluate())


def losses(metrics: dict[str, float], prefix: str = "eval") -> dict[str, float]:
    return {name: metrics[f"{prefix}_{name}"] for name in ("loss", "forget_loss", "retain_loss")}


@pytest.mark.parametrize(
    "settings",
    [
        {"average_tokens_across_devices": False},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        {"label_names": ["labels"]},
        {"prediction_loss_only": True},
        {"batch_eval_metrics": True, "eval_do_concat_batches": False},
        {"eval_use_gather_object": True, "eval_accumulation_steps": 1},
        {"eval_on_start": True},
        {"debug": "underflow_overflow"},
        {"use_cache": True},
        {"activation_checkpointing": True},
        {"torch_empty_cache_steps": 1},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3},
        {"skip_memory_metrics": False},
        {"torch_compile_backend": "eager"},
    ],
    ids="-".join,
)
def test_options_that_change_how_not_what(settings: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    """Not a bit of the weights, nor of the evaluation, is another."""
    trainer = trained(tmp_path, **settings)
    assert torch.equal(weights(trainer), plain[0])
    assert losses(trainer.evaluate()) == plain[1]


@pytest.mark.parametrize("counted", ["all", "non_padding"])
def test_tokens_seen_are_those_of_all_parts(counted: str, tmp_path: Path) -> None:
    recorder = tiny.Recorder()
    trainer = made(tmp_path, collator=recorder, include_num_input_tokens_seen=counted)
    trainer.train()
    parts = [part for batch in recorder.batches for part in batch.values()]
    assert len(recorder.batches) == 6
    assert [set(batch) for batch in recorder.batches[:1]] == [{"forget", "retain", "idk"}]
    expected = {
        "all": sum(part["input_ids"].numel() for part in parts),
        "non_padding": sum(int(part["attention_mask"].sum()) for part in parts),
    }
    assert expected["all"] > expected["non_padding"]
    assert trainer.state.num_input_tokens_seen == expected[counted]


@pytest.mark.parametrize("method", ["npo_kl", "rmu"])
def test_noise_in_the_embeddings_is_of_training_alone(method: str, tmp_path: Path) -> None:
    """NEFTune adds uniform noise of at most alpha / sqrt(tokens * width) to embeddings; references have none."""
    clean = made(tmp_path / "clean", method=method)
    before = losses(clean.evaluate())
    clean.train()
    noisy = made(tmp_path / "noisy", method=method, neftune_noise_alpha=5.0)
    assert losses(noisy.evaluate()) == before
    noisy.train()
    assert not torch.equal(weights(noisy), weights(clean))
    if clean.references is not None:
        assert noisy.references is not None
        assert all(noisy.references[row] == clean.references[row] for row in noisy.train_dataset.forget)
    after = losses(noisy.evaluate())
    assert after == losses(noisy.evaluate()), "evaluation draws nothing"


def test_noise_too_small_to_see_is_none(plain: Any, tmp_path: Path) -> None:
    """So that the test above sees noise, and not another model."""
    moved = (weights(trained(tmp_path, neftune_noise_alpha=1e-6)) - plain[0]).norm()
    start = torch.cat([p.detach().flatten() for p in tiny.llama().parameters()])
    assert moved < 1e-3 * (plain[0] - start).norm()


class OutOfMemoryOnce(TrainerCallback):
    """As a GPU would have it, before the first optimizer step of the first attempt."""

    def __init__(self) -> None:
        self.times = 0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.times += 1
        if self.times == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_a_smaller_batch_after_running_out_of_memory(tmp_path: Path) -> None:
    """The gradients of the failed attempt are in neither g nor e: transformers goes on with 3 rows, 0.9 of 4."""
    failing = OutOfMemoryOnce()
    found = made(tmp_path, callbacks=[failing], auto_find_batch_size=True, per_device_train_batch_size=4, gamma=1.0)
    found.train()
    assert failing.times > 1
    assert found._train_batch_size == 3
    straight = trained(tmp_path, per_device_train_batch_size=3, gamma=1.0)
    assert found.state.global_step == straight.state.global_step == 2
    assert torch.equal(weights(found), weights(straight))


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
def test_evaluation_of_rows_that_training_samples_by_length(strategy: str, plain: Any, tmp_path: Path) -> None:
    trainer = made(tmp_path, train_sampling_strategy=strategy, per_device_eval_batch_size=2, num_train_epochs=1)
    whole = made(tmp_path, per_device_eval_batch_size=6)
    assert losses(trainer.evaluate()) == pytest.approx(losses(whole.evaluate()), rel=1e-2)  # means over other batches
    batches = [batch["forget"]["input_ids"].shape[1] for batch in trainer.get_eval_dataloader()]
    if strategy == "group_by_length":
        assert batches[0] == max(batches), "the longest first"


@pytest.mark.parametrize("method", ["gd", "npo_gd", "npo_kl", "rmu"])
@pytest.mark.parametrize("has_trained", [False, True])
def test_predict_gives_the_losses_of_evaluate(method: str, has_trained: bool, tmp_path: Path) -> None:
    trainer = made(tmp_path, method=method)
    if has_trained:
        trainer.train()
        trainer._prepare_references(None)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions is None
    assert losses(output.metrics, "test") == losses(trainer.evaluate())


def test_predict_refuses_rows_that_have_no_reference(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    with pytest.raises(ValueError, match=r"^test_dataset: 5 of its sequences have no reference log-probability"):
        trainer.predict(tiny.dataset(5, 5, 77))


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"include_for_metrics": ["inputs"]}, r"^include_for_metrics: expected none, .* losses alone, got inputs$"),
        ({"optim": "lomo"}, r"^optim: expected one that steps after backward, got lomo; give adamw_torch$"),
        (
            {"optim": "galore_adamw_layerwise", "optim_target_modules": ["q_proj"]},
            r"^optim: expected one that steps after backward, got galore_adamw_layerwise; give galore_adamw$",
        ),
        (
            {"parallelism_config": ParallelismConfig(cp_size=2)},
            r"^parallelism_config: expected cp_size=1, got 2: .*; use dp_shard_size \(FSDP2\)",
        ),
        ({"parallelism_config": ParallelismConfig(sp_size=4)}, r"^parallelism_config: expected sp_size=1, got 4: "),
    ],
)
@pytest.mark.parametrize("rectify", [False, True])
def test_settings_that_cannot_be_kept(settings: Any, match: str, rectify: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        tiny.config(tmp_path / "run", rectify=rectify, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"compute_metrics": nothing},
            "compute_metrics: expected none: an evaluation while training gives losses alone",
        ),
        ({"compute_loss_func": nothing}, r"compute_loss_func: expected none: the loss is that of args.method"),
        ({"preprocess_logits_for_metrics": nothing}, "preprocess_logits_for_metrics: expected none: .* no logits"),
        ({"model_init": tiny.llama}, "model_init: expected none: references are of one model; .* gru-fast sweep"),
    ],
)
def test_arguments_that_would_have_no_effect(arguments: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = None if "model_init" in arguments else tiny.llama()
    with pytest.raises(ValueError, match=f"^{match}"):
        UnlearnTrainer(model, tiny.config(tmp_path / "run"), train_dataset=tiny.dataset(), **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", [None, "a/name"])
def test_a_model_that_is_none(model: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a causal LM that is loaded .*, got (NoneType|str)$"):
        UnlearnTrainer(model, tiny.config(tmp_path), train_dataset=tiny.dataset())


def test_a_layerwise_optimizer_behind_the_mixin(tmp_path: Path) -> None:
    class Theirs(GRUMixin, Trainer):
        gru = GRUOptions()

    args = TrainingArguments(
        str(tmp_path), optim="galore_adamw_layerwise", optim_target_modules=["q_proj"], use_cpu=True, report_to="none"
    )
    with pytest.raises(ValueError, match=r"^optim: expected one that steps after backward, got galore_adamw_layerwise"):
        Theirs(tiny.llama(), args, train_dataset=tiny.dataset())
