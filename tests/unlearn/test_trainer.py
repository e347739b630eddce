"""UnlearnTrainer: against loops by hand, all that a Trainer does, and steps that must not be applied."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, TrainerCallback

from gru_fast.core.backends.reference import rectified_gradient
from gru_fast.unlearn import PairCollator, UnlearnConfig, UnlearnDataset, UnlearnTrainer
from gru_fast.unlearn.methods import get, names

Batch = dict[str, dict[str, Tensor]]
STATISTICS = ("cos", "cos_after", "angle_before", "angle_after", "norm_before", "norm_after", "norm_ema")


def recorded(tmp_path: Path, model: Any = None, **settings: Any) -> tuple[UnlearnTrainer, list[Batch]]:
    """A trainer that has trained on tiny data, and the batches it saw."""
    recorder = tiny.Recorder()
    trainer = UnlearnTrainer(
        tiny.llama() if model is None else model,
        tiny.config(tmp_path, **{"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, **settings}),
        recorder,
        train_dataset=tiny.dataset(),
    )
    trainer.train()
    return trainer, recorder.batches


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(
    found: list[Tensor], expected: list[Tensor], rtol: float = 1e-5, start: list[Tensor] | None = None
) -> None:
    """Equal, to ``rtol`` of how far training has moved from ``start`` (None: bit for bit)."""
    for row, (a, b) in enumerate(zip(found, expected, strict=True)):
        if start is None:
            assert torch.equal(a, b), f"parameter {row}: off by {float((a - b).abs().max()):.3g}"
            continue
        moved, error = float((b - start[row]).norm()), float((a - b).norm())
        assert error <= rtol * moved + 1e-9, f"parameter {row}: off by {error:.3g} after moving {moved:.3g}"


def logged(trainer: UnlearnTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- against loops by hand -------------------------------------------------------------------------------------------


def cross_entropy(model: Any, part: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


def sequence_nll(model: Any, part: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), part["labels"][:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(1)


def npo(model: Any, reference: Any, part: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        before = sequence_nll(reference, part)
    return -20.0 * F.logsigmoid(0.1 * (sequence_nll(model, part) - before)).mean()


def joint(model: Any, batch: Batch) -> Tensor:
    total, count = torch.zeros(()), 0
    for part in ("idk", "retain"):
        labels = int((batch[part]["labels"][:, 1:] != -100).sum())
        total, count = total + cross_entropy(model, batch[part]) * labels, count + labels
    return total / count


def divergence(model: Any, reference: Any, part: dict[str, Tensor]) -> Tensor:
    inputs = {"input_ids": part["input_ids"], "attention_mask": part["attention_mask"]}
    with torch.no_grad():
        p = reference(**inputs).logits.softmax(-1)
    return (p * (p.log() - model(**inputs).logits.log_softmax(-1))).sum(-1).mean()


OBJECTIVES: dict[str, Callable[[Any, Any, Batch], Tensor]] = {
    "ga": lambda model, _, b: -cross_entropy(model, b["forget"]),
    "gd": lambda model, _, b: cross_entropy(model, b["retain"]) - cross_entropy(model, b["forget"]),
    "npo": lambda model, reference, b: npo(model, reference, b["forget"]),
    "npo_gd": lambda model, reference, b: npo(model, reference, b["forget"]) + cross_entropy(model, b["retain"]),
    "npo_kl": lambda model, ref, b: npo(model, ref, b["forget"]) + divergence(model, ref, b["retain"]),
    "idk": lambda model, _, b: joint(model, b),
}


def value(loss: Tensor) -> float:
    return float(loss.detach())


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def by_hand(
    batches: list[Batch],
    objective: Any,
    gamma: float | None,
    tau: float = math.inf,
    lr: float = 0.05,
    accumulate: int = 2,
) -> list[Tensor]:
    """SGD on one graph, ``accumulate`` micro-batches a step, the last of what is left; with a gamma it is rectified."""
    model, reference = tiny.llama(), tiny.llama()
    params = list(model.parameters())
    ema = torch.zeros(sum(p.numel() for p in params))
    for step in (batches[i : i + accumulate] for i in range(0, len(batches), accumulate)):
        g = sum(gradient(objective(model, reference, b), model) for b in step) / len(step)
        if gamma is not None:
            r = sum(gradient(cross_entropy(model, b["retain"]), model) for b in step) / len(step)
            ema = (1 - gamma) * ema + gamma * r
            g = rectified_gradient(g, ema, tau)
        with torch.no_grad():
            for p, part in zip(params, g.split([p.numel() for p in params]), strict=True):
                p.sub_(part.view_as(p), alpha=lr)
    return weights(model)


@pytest.mark.parametrize("method", sorted(OBJECTIVES))
@pytest.mark.parametrize("how", ["plain", "monitor", "collect", "stream"])
def test_training_is_what_a_loop_by_hand_does(method: str, how: str, tmp_path: Path) -> None:
    """Three steps of two micro-batches: terms run backward one by one, and retain shares, add up to the objective."""
    settings: dict[str, Any] = {
        "plain": {},
        "monitor": {"monitor": True, "gamma": 0.3},
        "collect": {"rectify": True, "gamma": 0.3, "tau": 2.0},
        "stream": {"rectify": True, "gamma": 0.3, "tau": 2.0, "stream": True},
    }[how]
    trainer, batches = recorded(tmp_path, method=method, **settings)
    rectified = how in ("collect", "stream")
    expected = by_hand(batches, OBJECTIVES[method], 0.3 if rectified else None, 2.0 if rectified else math.inf)
    assert_same(weights(trainer.model), expected, 2e-4, weights(tiny.llama()))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["gd", "npo"])
def test_an_epoch_ends_with_a_step_of_what_is_left(method: str, stream: bool, tmp_path: Path) -> None:
    """Six micro-batches, four a step: g and r of the second are means over two."""
    settings = {"rectify": True, "gamma": 0.3, "tau": 2.0, "stream": stream, "gradient_accumulation_steps": 4}
    trainer, batches = recorded(tmp_path, method=method, **settings)
    assert (len(batches), trainer.state.global_step) == (6, 2)
    expected = by_hand(batches, OBJECTIVES[method], 0.3, 2.0, accumulate=4)
    assert_same(weights(trainer.model), expected, 2e-4, weights(tiny.llama()))


@pytest.mark.parametrize("method", ["gd", "idk", "npo_kl"])
def test_the_logged_loss_is_the_whole_objective(method: str, tmp_path: Path) -> None:
    values = []
    for settings in ({}, {"rectify": True}, {"rectify": True, "stream": True}):
        trainer, batches = recorded(tmp_path, method=method, max_steps=1, **settings)
        model = tiny.llama()
        expected = sum(value(OBJECTIVES[method](model, tiny.llama(), b)) for b in batches[:2]) / 2
        values.append(logged(trainer)[0]["loss"])
        assert values[-1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", ["collect", "stream"])
def test_the_retain_pass_is_not_run_twice(how: str, tmp_path: Path) -> None:
    """GD's own retain term is r: with GRU a micro-batch costs two forward passes, not three."""
    model = tiny.llama()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    recorded(tmp_path, model, method="gd", rectify=True, stream=how == "stream", max_steps=1)
    assert len(calls) == 4  # of two micro-batches


@pytest.mark.parametrize("stream", [False, True])
def test_splitting_a_batch_changes_nothing(stream: bool, tmp_path: Path) -> None:
    """Rows of one length, so that means of means are means."""
    forget, retain = tiny.rows(8, 1, 5), tiny.rows(8, 2, 5)
    found = []
    for size, count in ((4, 1), (2, 2), (1, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        trainer = UnlearnTrainer(
            tiny.llama(),
            tiny.config(tmp_path, method="npo_gd", rectify=True, tau=1.0, stream=stream, optim="sgd", **settings),
            train_dataset=UnlearnDataset(forget, retain),
        )
        trainer.train()
        assert trainer.state.global_step == 2
        found.append(weights(trainer.model))
    for other in found[1:]:
        assert_same(other, found[0], 1e-4, weights(tiny.llama()))


@pytest.mark.parametrize("stream", [False, True])
def test_with_sgd_the_retain_loss_does_not_rise_to_first_order(stream: bool, tmp_path: Path) -> None:
    """One step on one batch: plain ascent raises the loss of its retain rows in proportion to the step, the rectified
    step does not. The forget rows are among the rows to retain, so that the two gradients oppose each other.
    """
    forget = tiny.rows(4, 1)
    data = UnlearnDataset(forget, [*forget, *tiny.rows(2, 7)])
    retain = PairCollator(0)([data[i] for i in range(4)])["retain"]
    rises = {}
    for rectify in (False, True):
        for lr in (1e-2, 1e-3):
            settings = {"rectify": rectify, "stream": rectify and stream, "learning_rate": lr, "gamma": 1.0}
            model = tiny.llama()
            before = value(cross_entropy(copy.deepcopy(model).double(), retain))
            args = tiny.config(
                tmp_path,
                method="ga",
                optim="sgd",
                per_device_train_batch_size=4,
                gradient_accumulation_steps=1,
                **settings,
            )
            trainer = UnlearnTrainer(model, args, train_dataset=data)
            trainer.train()
            rises[rectify, lr] = value(cross_entropy(model.double(), retain)) - before
            assert not rectify or logged(trainer)[0]["conflict"] == 1.0
    assert rises[False, 1e-2] > 5 * rises[False, 1e-3] > 0.0
    # What is left is second order: a tenth of the step leaves a hundredth of it.
    assert abs(rises[True, 1e-3]) < 0.02 * rises[False, 1e-3]
    assert abs(rises[True, 1e-3]) < 0.05 * abs(rises[True, 1e-2])


# ---- every method, every way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("rectify", [False, True])
def test_every_method_runs_with_and_without(method: str, rectify: bool, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, method=method, rectify=rectify, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(weights(trainer.model), before, strict=True))
    entries = logged(trainer)
    assert len(entries) == 2
    for entry in entries:
        assert "forget_loss" in entry
        assert ("cos" in entry) == rectify
        keeps = {"gd", "wga_gd", "npo_gd", "simnpo_gd", "undial_gd", "satimp", "pdu", "idk", "dpo"}
        assert ("retain_loss" in entry) == (rectify or method in keeps)
        if rectify:
            assert all(name in entry for name in (*STATISTICS, "conflict", "clipped", "skipped", "degenerate"))
    assert (trainer.references is not None) == bool(get(method).reference_log_probs)


CHECKPOINTING = (
    "activation_checkpointing" if hasattr(UnlearnConfig, "activation_checkpointing") else "gradient_checkpointing"
)


@pytest.mark.parametrize("stream", [False, True])
def test_gradient_checkpointing_changes_nothing(stream: bool, tmp_path: Path) -> None:
    found = []
    for settings in ({}, {CHECKPOINTING: True}):
        trainer = tiny.trainer(tmp_path, method="npo_kl", rectify=True, stream=stream, optim="sgd", **settings)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == bool(settings)
        found.append(weights(trainer.model))
    assert_same(found[1], found[0], 1e-5, weights(tiny.llama()))


@pytest.mark.parametrize("how", ["autocast", "model", "ema"])
def test_bfloat16(how: str, tmp_path: Path) -> None:
    """bf16 autocast over float32 weights; a bf16 model with a float32 or a bf16 EMA."""
    model = tiny.llama(dtype=torch.float32 if how == "autocast" else torch.bfloat16)
    settings = {"bf16": how == "autocast", "ema_dtype": "bfloat16" if how == "ema" else None}
    trainer = tiny.trainer(tmp_path, model, method="npo_gd", rectify=True, tau=1.0, **settings)
    trainer.train()
    expected = torch.bfloat16 if how == "ema" else torch.float32
    assert {e.dtype for e in trainer.retain_ema.tensors} == {expected}
    # Reference log-probabilities come from the same arithmetic: the log-ratios start at 0.
    assert logged(trainer)[0]["forget_loss"] == pytest.approx(20 * math.log(2), abs=0.2)
    assert all(math.isfinite(entry["cos"]) for entry in logged(trainer))


def lora(seed: int = 0) -> Any:
    peft = pytest.importorskip("peft")
    model = tiny.llama()
    torch.manual_seed(seed)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize("method", ["npo_gd", "npo_kl"])
@pytest.mark.parametrize("stream", [False, True])
def test_lora_trains_the_adapters_alone(method: str, stream: bool, tmp_path: Path) -> None:
    model = lora()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = tiny.trainer(tmp_path, model, method=method, rectify=True, stream=stream, save_strategy="epoch")
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert len(trainer.retain_ema) == 8  # two layers, two modules, two factors
    assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").is_file()


def test_trainers_own_clipping_comes_on_top_when_asked_for(tmp_path: Path) -> None:
    norms = []
    for limit in (0.0, 0.5):
        settings = {"max_grad_norm": limit, "learning_rate": 0.1, "weight_decay": 0.0}
        trainer = tiny.trainer(tmp_path, method="gd", rectify=True, tau=1.0, optim="sgd", max_steps=1, **settings)
        before = weights(trainer.model)
        trainer.train()
        moved = math.sqrt(
            sum(float((a - b).square().sum()) for a, b in zip(weights(trainer.model), before, strict=True))
        )
        norms.append(moved / trainer.args.learning_rate)
    assert norms == pytest.approx([1.0, 0.5], rel=1e-3)


# ---- looking on ------------------------------------------------------------------------------------------------------


def test_monitor_changes_nothing_and_logs_the_conflict(tmp_path: Path) -> None:
    forget = tiny.rows(12, 1)
    data = UnlearnDataset(forget, forget)
    found = []
    for monitor in (False, True):
        trainer = tiny.trainer(tmp_path, data=data, method="ga", monitor=monitor)
        trainer.train()
        found.append(weights(trainer.model))
    assert_same(found[1], found[0])  # bit for bit
    entries = logged(trainer)
    assert all(entry["cos"] < 0 and entry["conflict"] == 1.0 for entry in entries)
    assert all(
        entry["cos_after"] == entry["cos"] and entry["angle_after"] == entry["angle_before"] for entry in entries
    )
    assert all("skipped" not in entry and "retain_loss" in entry for entry in entries)


def test_logs_are_means_since_the_last_one(tmp_path: Path) -> None:
    each, _ = recorded(tmp_path, method="gd", rectify=True, tau=3.0)
    both, _ = recorded(tmp_path, method="gd", rectify=True, tau=3.0, logging_steps=2, max_steps=2)
    expected, (found,) = logged(each)[:2], logged(both)
    for name in ("retain_loss", "forget_loss", "clipped", *STATISTICS):
        assert found[name] == pytest.approx((expected[0][name] + expected[1][name]) / 2, rel=1e-6), name


def test_the_statistics_are_those_of_the_formula(tmp_path: Path) -> None:
    trainer, batches = recorded(tmp_path, method="ga", rectify=True, gamma=1.0, tau=0.5, max_steps=1)
    model = tiny.llama()
    g = sum(gradient(-cross_entropy(model, b["forget"]), model) for b in batches[:2]) / 2
    r = sum(gradient(cross_entropy(model, b["retain"]), model) for b in batches[:2]) / 2
    entry, after = logged(trainer)[0], rectified_gradient(g, r, 0.5)
    assert entry["cos"] == pytest.approx(float(F.cosine_similarity(g, r, dim=0)), rel=1e-4)
    assert entry["angle_before"] == pytest.approx(math.degrees(math.acos(entry["cos"])))
    assert (entry["norm_before"], entry["norm_ema"]) == pytest.approx((float(g.norm()), float(r.norm())), rel=1e-4)
    assert entry["norm_after"] == pytest.approx(float(after.norm()), rel=1e-4)
    assert entry["retain_loss"] == pytest.approx(sum(value(cross_entropy(model, b["retain"])) for b in batches[:2]) / 2)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["npo_gd", "ga_kl", "dpo"])
def test_evaluation_gives_the_objective_and_both_losses(method: str, tmp_path: Path) -> None:
    evaluation = tiny.dataset()  # the rows of the training
    trainer = tiny.trainer(tmp_path, method=method, eval_data=evaluation, per_device_eval_batch_size=12)
    batch = PairCollator(0)([evaluation[i] for i in range(12)])
    start = trainer.evaluate()
    assert not (tmp_path / "reference_log_probs.json").exists()  # a finished run's own would be overwritten
    retain = value(cross_entropy(tiny.llama(), batch["retain"]))
    assert start["eval_retain_loss"] == pytest.approx(retain, rel=1e-5)
    weight = 0.0 if method == "ga_kl" else 1.0  # at the reference KL is 0
    assert start["eval_loss"] == pytest.approx(start["eval_forget_loss"] + weight * retain, rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start["eval_loss"]


def test_evaluation_while_training_can_stop_it_early(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_retain_loss", "save_steps": 1}
    trainer = UnlearnTrainer(
        tiny.llama(),
        tiny.config(
            tmp_path, method="ga", save_strategy="steps", load_best_model_at_end=True, num_train_epochs=4, **settings
        ),
        train_dataset=tiny.dataset(),
        eval_dataset={"one": tiny.dataset(4, 4, seed=5), "two": tiny.dataset(4, 4, seed=6)},
        callbacks=[EarlyStoppingCallback(1)],
    )
    trainer.args.metric_for_best_model = "eval_one_retain_loss"
    trainer.train()
    assert trainer.state.global_step < 12
    found = [entry for entry in trainer.state.log_history if "eval_two_retain_loss" in entry]
    assert len(found) >= 1
    assert (tmp_path / f"checkpoint-{trainer.state.best_global_step}").is_dir()


def test_data_without_references_is_refused_after_training(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, method="npo", max_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="eval_dataset: 4 of its sequences have no reference log-probability"):
        trainer.evaluate(tiny.dataset(4, 4, seed=5))


# ---- steps that must not be applied ----------------------------------------------------------------------------------


class Spoil(TrainerCallback):
    """Makes the weights' gradient NaN in some steps, through a hook on one parameter."""

    def __init__(self, model: Any, which: str, steps: set[int]) -> None:
        self.passes = 0
        self.on = False
        self.steps, self.which = steps, which
        model.lm_head.weight.register_hook(self.spoil)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on, self.passes = state.global_step in self.steps, 0

    def spoil(self, grad: Tensor) -> Tensor:
        self.passes += 1  # r comes first, then g
        wanted = self.passes % 2 == (1 if self.which == "retain" else 0)
        return torch.full_like(grad, math.nan) if self.on and wanted else grad


def optimizer_state(trainer: UnlearnTrainer) -> list[Any]:
    return [
        {name: value.clone() for name, value in state.items()}
        for state in trainer.optimizer.state_dict()["state"].values()
    ]


class Watch(TrainerCallback):
    """Keeps weights and optimizer state after every step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[tuple[list[Tensor], list[Any], list[Tensor]]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ema = [e.clone() for e in self.trainer.retain_ema.tensors]
        self.seen.append((weights(self.trainer.model), optimizer_state(self.trainer), ema))


@pytest.mark.parametrize("which", ["forget", "retain"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_step_with_nan_is_skipped_and_counted(which: str, stream: bool, tmp_path: Path) -> None:
    """Not even AdamW's decay and moments see it, and e stays clean."""
    model, watch = tiny.llama(), Watch()
    args = tiny.config(tmp_path, method="ga", rectify=True, stream=stream, weight_decay=0.1)
    trainer = UnlearnTrainer(model, args, train_dataset=tiny.dataset(), callbacks=[watch, Spoil(model, which, {1})])
    watch.trainer = trainer
    trainer.train()
    (before, moments, _), (after, same, ema), (later, *_) = watch.seen
    assert_same(after, before)
    for a, b in zip(same, moments, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert all(bool(e.isfinite().all()) for e in ema)
    assert any(not torch.equal(a, b) for a, b in zip(later, after, strict=True))
    entries = logged(trainer)
    assert [entry["skipped"] for entry in entries] == [0, 1, 1]
    assert ("cos" in entries[1]) == (which == "retain")
    assert trainer.gru_counts.applied == 2


def opposite() -> UnlearnDataset:
    """One row, to forget and to keep: GA's gradient is exactly -r."""
    row = tiny.rows(1, 1)
    return UnlearnDataset(row * 12, row)


def test_a_degenerate_step_is_counted_and_not_applied(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, data=opposite(), method="ga", rectify=True, gamma=1.0, weight_decay=0.1)
    before = weights(trainer.model)
    with pytest.raises(RuntimeError, match=r"all 3 steps were skipped \(0 with NaN or Inf, 3 degenerate, 0 applied"):
        trainer.train()
    assert_same(weights(trainer.model), before)
    assert [entry["degenerate"] for entry in logged(trainer)] == [1, 2, 3]
    assert [entry["skipped"] for entry in logged(trainer)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("limit", "which", "match"),
    [
        (
            1,
            "forget",
            r"more than max_skipped_steps=1 in a row .*\(2 with NaN or Inf.* 1 applied.*unlearning gradient; lower",
        ),
        (0, "retain", r"more than max_skipped_steps=0 in a row .*retain gradient; lower learning_rate"),
    ],
)
def test_a_run_that_only_skips_stops_and_says_why(limit: int, which: str, match: str, tmp_path: Path) -> None:
    model = tiny.llama()
    args = tiny.config(tmp_path, method="ga", rectify=True, max_skipped_steps=limit, num_train_epochs=3)
    spoil = Spoil(model, which, set(range(1, 9)))
    trainer = UnlearnTrainer(model, args, train_dataset=tiny.dataset(), callbacks=[spoil])
    with pytest.raises(RuntimeError, match=match):
        trainer.train()
    assert trainer.state.global_step == 1 + limit


def test_an_interrupted_step_leaves_nothing_behind(tmp_path: Path) -> None:
    """An error between the retain and the forget pass, and training again with the same trainer."""
    model = tiny.llama()
    trainer = tiny.trainer(tmp_path, model, method="ga", rectify=True, max_steps=1)
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    hook.remove()
    assert trainer.retain_ema.pending_nbytes == 0
    fresh = tiny.trainer(tmp_path, method="ga", rectify=True, max_steps=1)
    trainer.train()
    fresh.train()
    assert_same(weights(model), weights(fresh.model))


# ---- float16 ---------------------------------------------------------------------------------------------------------


def with_scaler(tmp_path: Path, scale: float, **settings: Any) -> Any:
    """A trainer whose accelerator scales the loss, as it would on a GPU alone; the arithmetic stays float32."""
    trainer = tiny.trainer(tmp_path, **{"rectify": True, "optim": "sgd", **settings})
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


@pytest.fixture
def _fp16(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No autocast where the loss is scaled; and accelerate's global state as it was."""
    from accelerate.state import AcceleratorState

    off = torch.autocast("cpu", enabled=False)
    monkeypatch.setattr("accelerate.accelerator.get_mixed_precision_context_manager", lambda *_: off)
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_fp16")
@pytest.mark.parametrize("method", ["ga", "gd", "idk"])
def test_a_loss_scaler_changes_nothing(method: str, tmp_path: Path) -> None:
    plain = tiny.trainer(tmp_path, method=method, rectify=True, tau=1.0, gamma=0.3, optim="sgd")
    plain.train()
    expected, entries = weights(plain.model), logged(plain)
    scaled = with_scaler(tmp_path, 1024.0, method=method, tau=1.0, gamma=0.3)
    scaled.train()
    assert scaled.accelerator.scaler.get_scale() == 1024.0
    assert_same(weights(scaled.model), expected, 1e-5, weights(tiny.llama()))
    for found, entry in zip(logged(scaled), entries, strict=True):
        for name in ("cos", "norm_before", "norm_after", "norm_ema", "retain_loss"):
            assert found[name] == pytest.approx(entry[name], rel=1e-4), name


@pytest.mark.usefixtures("_fp16")
@pytest.mark.parametrize("which", ["forget", "retain"])
def test_an_overflow_lowers_the_loss_scale(which: str, tmp_path: Path) -> None:
    model, watch = tiny.llama(), Watch()
    trainer = with_scaler(tmp_path, 1024.0, model=model, method="ga", optim="adamw_torch")
    watch.trainer = trainer
    trainer.add_callback(watch)
    trainer.add_callback(Spoil(model, which, {1}))
    trainer.train()
    (before, _, ema), (after, _, same), (later, *_) = watch.seen
    assert_same(after, before)
    assert_same(same, ema)
    assert any(not torch.equal(a, b) for a, b in zip(later, after, strict=True))
    assert trainer.accelerator.scaler.get_scale() == 512.0
    assert trainer.gru_counts.skipped == 1


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts", "match"),
    [
        (
            {"method": "ga", "rectify": True},
            {},
            "parts forget, retain for ga with rectify, got forget; give .* retain data",
        ),
        ({"method": "ga", "monitor": True}, {}, "for ga with monitor, got forget"),
        ({"method": "gd"}, {}, "parts forget, retain for gd, got forget"),
        ({"method": "idk"}, {"retain": tiny.rows(2, 1)}, "parts idk, retain for idk, got forget, retain"),
    ],
)
def test_missing_data_is_named(settings: dict[str, Any], parts: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^train_dataset: expected the {match}".replace("the for", "the .* for")):
        tiny.trainer(tmp_path, data=UnlearnDataset(tiny.rows(4, 0), **parts), **settings)


def test_other_arguments_and_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args: expected an UnlearnConfig, got NoneType"):
        UnlearnTrainer(tiny.llama(), None)  # type: ignore[arg-type]
    items = [tiny.dataset()[i] for i in range(4)]
    with pytest.raises(TypeError, match="train_dataset: expected an UnlearnDataset, since npo reads reference log-"):
        tiny.trainer(tmp_path, data=items, method="npo")
    tiny.trainer(tmp_path, data=items, method="gd", rectify=True, max_steps=1).train()  # others take any dataset


def test_a_moving_average_that_the_weights_do_not_allow_is_refused_before_any_work(tmp_path: Path) -> None:
    match = r"ema_dtype: expected float32 or a dtype of the trained parameters \(float32\), got bfloat16; leave it out"
    with pytest.raises(ValueError, match=match):
        tiny.trainer(tmp_path, method="ga", rectify=True, ema_dtype="bfloat16")
    tiny.trainer(tmp_path, method="ga", ema_dtype="bfloat16")  # not used
    tiny.trainer(tmp_path, model=tiny.llama(dtype=torch.bfloat16), method="ga", rectify=True, ema_dtype="bfloat16")


def test_every_epoch_pairs_anew(tmp_path: Path) -> None:
    """Whichever sampler accelerate makes, the dataset learns its epoch."""
    data, epochs = tiny.dataset(), []
    for seedable in (True, False):
        data.set_epoch(7)
        trainer = tiny.trainer(
            tmp_path, data=data, method="gd", num_train_epochs=3, accelerator_config={"use_seedable_sampler": seedable}
        )

        class Note(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                epochs.append(data.epoch)

        trainer.add_callback(Note())
        trainer.train()
    assert epochs == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2


def test_padding_token_of_the_tokenizer_or_the_model(tmp_path: Path) -> None:
    class Tokenizer:
        pad_token_id = None
        eos_token_id = 2

    trainer = UnlearnTrainer(tiny.llama(), tiny.config(tmp_path), processing_class=Tokenizer())
    assert trainer.data_collator.pad_token_id == 2
    assert tiny.trainer(tmp_path).data_collator.pad_token_id == 0


def test_the_work_done_is_counted_over_all_parts(tmp_path: Path) -> None:
    trainer, batches = recorded(tmp_path, method="ga", max_steps=1)
    tokens = sum(part["input_ids"].numel() for b in batches[:2] for part in b.values())
    assert trainer.state.total_flos == 6 * tokens * trainer.model.num_parameters(exclude_embeddings=True)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_sampling_by_length_goes_by_the_rows_to_forget(tmp_path: Path, strategy: str) -> None:
    """Rows of one step are of like length; each row comes once."""
    trainer, batches = recorded(tmp_path, train_sampling_strategy=strategy)
    sampler = trainer._get_train_sampler()
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset.forget]
    assert list(sampler.lengths) == lengths
    seen = sorted(row.tolist() for batch in batches for row in batch["forget"]["attention_mask"].sum(dim=1))
    assert seen == sorted(lengths)
