"""More rows to keep than to forget, an average before the first step, and cos(e, r): against loops by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gru_fast.unlearn import PairCollator, UnlearnDataset, UnlearnTrainer

SGD = {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0}


class Recorder(PairCollator):
    """Keeps every batch it has made."""

    def __call__(self, items: Any) -> Any:
        made = super().__call__(items)
        if "forget" in made:
            BATCHES.append(made)
        else:
            WARM_UP.append(made)
        return made


BATCHES: list[Any] = []
WARM_UP: list[Any] = []
RUN: list[int] = []


def trained(tmp_path: Path, data: Any = None, **settings: Any) -> UnlearnTrainer:
    BATCHES.clear()
    WARM_UP.clear()
    watched = settings.get("rectify", True) and not settings.get("stream")
    config = tiny.config(tmp_path, **{**SGD, "rectify": True, "gamma": 0.3, "monitor_retain": watched, **settings})
    data = tiny.dataset() if data is None else data
    model = tiny.llama()
    RUN.clear()
    model.register_forward_pre_hook(lambda *call: RUN.append(len(call[-1]["input_ids"])), with_kwargs=True)
    trainer = UnlearnTrainer(model, config, Recorder(0), train_dataset=data)
    trainer.train()
    assert max(RUN) <= 2  # rows of a forward pass: the retain rows come in pieces
    return trainer


def nll(model: Any, part: Any) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()


def by_hand(settings: dict[str, Any], keeps: float) -> tuple[nn.Module, Tensor, list[float]]:
    """GRU with SGD over the recorded batches, each retain part in one piece; weights, e, and cos(e, r) of the steps."""
    model = tiny.llama()
    size = sum(p.numel() for p in model.parameters())
    e, cosines = torch.zeros(size, dtype=torch.float64), []
    if WARM_UP:
        e = torch.stack([gradient(nll(model, batch["retain"]), model) for batch in WARM_UP]).mean(0)
    for start in range(0, len(BATCHES), 2):
        step = BATCHES[start : start + 2]
        r = torch.stack([gradient(nll(model, b["retain"]), model) for b in step]).mean(0)
        g = torch.stack([gradient(-nll(model, b["forget"]), model) for b in step]).mean(0) + keeps * r
        if e.norm() > 0:
            cosines.append(float(e @ r / e.norm() / r.norm()))
        e = (1.0 - settings["gamma"]) * e + settings["gamma"] * r
        if g @ e < 0:
            g = g - (g @ e) / (e @ e) * e
        with torch.no_grad():
            for param, move in zip(model.parameters(), g.split([p.numel() for p in model.parameters()]), strict=True):
                param.sub_(0.05 * move.reshape(param.shape).float())
    return model, e, cosines


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ga", "retain_batch_size": 7},
        {"method": "gd", "retain_batch_size": 6},
        {"method": "gd", "retain_batch_size": 6, "stream": True},
        {"method": "ga", "retain_batch_size": 1},
        {"method": "ga", "warm_up_retain": 3},
        {"method": "gd", "retain_batch_size": 5, "warm_up_retain": 2, "stream": True},
        {"method": "ga", "retain_batch_size": 4, "warm_up_retain": 2},
    ],
    ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()),
)
def test_it_is_the_step_with_one_large_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {"gamma": 0.3, **settings}
    trainer = trained(tmp_path, **settings)
    rows = settings.get("retain_batch_size", 2)
    assert [len(b["retain"]["input_ids"]) for b in BATCHES] == [rows] * len(BATCHES)
    assert [len(b["forget"]["input_ids"]) for b in BATCHES] == [2] * len(BATCHES)
    assert [len(b["retain"]["input_ids"]) for b in WARM_UP] == [rows] * settings.get("warm_up_retain", 0)
    model, e, cosines = by_hand(settings, keeps=float(settings["method"] == "gd"))
    start = tiny.llama()
    for a, b, c in zip(trainer.model.parameters(), model.parameters(), start.parameters(), strict=True):
        assert float((a - b).detach().norm()) <= 2e-4 * float((b - c).detach().norm()) + 1e-8
    found = torch.cat([t.flatten() for t in trainer.retain_ema.tensors]).double()
    assert float((found - e).norm()) <= 2e-4 * float(e.norm())
    logged = [entry["cos_retain"] for entry in trainer.state.log_history if "cos_retain" in entry]
    assert logged == ([] if settings.get("stream") else pytest.approx(cosines, abs=1e-4))
    assert len(logged) == 0 or settings.get("warm_up_retain") or "cos_retain" not in trainer.state.log_history[0]


@pytest.mark.parametrize("positions", ["all", "attended"])
def test_a_kl_term_is_that_of_the_whole_retain_batch(positions: str, tmp_path: Path) -> None:
    """Plain training on GA + KL: one process that runs the retain rows in pieces of 2, one that runs all 6 at once."""
    trainer = trained(
        tmp_path, method="ga_kl", retain_batch_size=6, rectify=False, kl_positions=positions, num_train_epochs=2
    )
    whole = tiny.config(tmp_path, **SGD, method="ga_kl", kl_positions=positions, num_train_epochs=2)
    data = tiny.dataset().draw_retain(3)
    other = UnlearnTrainer(tiny.llama(), whole, train_dataset=data)
    other.retain_pieces = lambda inputs, *_, **__: [(1.0, inputs)]
    other.train()
    for a, b, c in zip(trainer.model.parameters(), other.model.parameters(), tiny.llama().parameters(), strict=True):
        assert float((a - b).detach().norm()) <= 2e-4 * float((b - c).detach().norm()) + 1e-8


def test_the_first_rows_are_those_of_a_batch_without_more(tmp_path: Path) -> None:
    plain = tiny.dataset()
    more = tiny.dataset().draw_retain(3)
    assert more.draws("retain") == 3
    assert more.draws("forget") == 1
    for index in range(len(plain)):
        assert more[index]["retain"][0] == plain[index]["retain"]
        assert more[index]["forget"] == plain[index]["forget"]
    rows = PairCollator(0, retain_rows=4)([more[0], more[1]])["retain"]["input_ids"]
    expected = [more[i]["retain"][k]["input_ids"] for k, i in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert [row[row != 0].tolist() for row in rows] == expected
    assert len({tuple(row["input_ids"]) for i in range(12) for row in more[i]["retain"]}) > 12  # draws of their own
    with pytest.raises(ValueError, match="per_row: expected at least 1, or None, got 0"):
        plain.draw_retain(0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_that_began_with_an_average_resumes_bit_for_bit(stream: bool, tmp_path: Path) -> None:
    settings = {
        "method": "gd", "optim": "adamw_torch", "retain_batch_size": 3, "warm_up_retain": 2, "stream": stream,
        "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    whole = trained(tmp_path, **settings)
    assert len(WARM_UP) == 2
    assert whole.retain_ema.step == whole.state.global_step + 1 == 7  # its beginning counts
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    WARM_UP.clear()
    again = UnlearnTrainer(
        tiny.llama(), tiny.config(tmp_path, rectify=True, gamma=0.3, weight_decay=0.0, **settings), Recorder(0),
        train_dataset=tiny.dataset(),
    )  # fmt: skip
    again.train(resume_from_checkpoint=True)
    assert WARM_UP == []
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.retain_ema.tensors, whole.retain_ema.tensors, strict=True))
    config = tiny.config(tmp_path, rectify=True, **{**settings, "retain_batch_size": 5})
    other = UnlearnTrainer(tiny.llama(), config, train_dataset=tiny.dataset())
    with pytest.raises(ValueError, match="saved with retain_batch_size=3, resumed with 5"):
        other.train(resume_from_checkpoint=True)


def test_a_step_rectifies_against_what_it_began_with(tmp_path: Path) -> None:
    """At gamma 1e-6, where e is the warm-up's alone, the first step's cos is that of the warm-up's mean."""
    trainer = trained(tmp_path, method="ga", warm_up_retain=2, gamma=1e-6, max_steps=1)
    model = tiny.llama()
    e = torch.stack([gradient(nll(model, batch["retain"]), model) for batch in WARM_UP]).mean(0)
    g = torch.stack([gradient(-nll(model, batch["forget"]), model) for batch in BATCHES[:2]]).mean(0)
    entry = next(entry for entry in trainer.state.log_history if "cos" in entry)
    assert entry["cos"] == pytest.approx(float(e @ g / e.norm() / g.norm()), abs=1e-4)


def test_a_loss_scale_that_is_too_large_is_lowered_until_the_average_is_finite(tmp_path: Path) -> None:
    WARM_UP.clear()
    config = tiny.config(tmp_path, **SGD, rectify=True, method="ga", warm_up_retain=2, gamma=1e-6, max_steps=1)
    trainer = UnlearnTrainer(tiny.llama(), config, Recorder(0), train_dataset=tiny.dataset())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    trainer.train()
    assert 2.0**120 < trainer.accelerator.scaler.get_scale() < 2.0**127  # a loss of 4 times the first is Inf
    model = tiny.llama()
    expected = torch.stack([gradient(nll(model, batch["retain"]), model) for batch in WARM_UP[:2]]).mean(0)
    found = torch.cat([t.flatten() for t in trainer.retain_ema.tensors]).double()
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


def test_nan_before_the_first_step_is_an_error(tmp_path: Path) -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight[3] = math.inf
    config = tiny.config(tmp_path, rectify=True, method="ga", warm_up_retain=1)
    with pytest.raises(RuntimeError, match="warm_up_retain: NaN or Inf in the retain gradient before the first step"):
        UnlearnTrainer(model, config, train_dataset=tiny.dataset()).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up_retain": 2}, "warm_up_retain: expected rectify or monitor beside it"),
        ({"warm_up_retain": 2, "rectify": True, "rectifier": "gdr"}, "warm_up_retain: expected gamma below 1"),
        ({"warm_up_retain": 2, "rectify": True, "gamma": 1.0}, "warm_up_retain: expected gamma below 1"),
        ({"warm_up_retain": -1}, "warm_up_retain: expected a whole number of at least 0, got -1"),
        ({"retain_batch_size": 0}, "retain_batch_size: expected a whole number of at least 1, got 0"),
        ({"retain_batch_size": 2.5}, "retain_batch_size: expected a whole number of at least 1, got 2.5"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **settings)


def test_data_that_cannot_have_more_rows(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, retain_batch_size=4, method="ga")
    with pytest.raises(TypeError, match="data_collator: expected a PairCollator with retain_batch_size, got function"):
        UnlearnTrainer(tiny.llama(), config, lambda items: items, train_dataset=tiny.dataset())
    with pytest.raises(TypeError, match="train_dataset: expected an UnlearnDataset with retain_batch_size, got list"):
        UnlearnTrainer(tiny.llama(), config, train_dataset=[tiny.dataset()[0]])
    with pytest.raises(ValueError, match="retain_batch_size: no rows to keep in train_dataset"):
        UnlearnTrainer(tiny.llama(), config, train_dataset=UnlearnDataset(tiny.rows(4, 1)))
