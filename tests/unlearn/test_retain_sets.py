"""Several retain sets in the trainer: parts of a batch of their own, which no step goes against."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tofu_folders
import torch
import torch.nn.functional as F
from torch import Tensor

from gru_fast import RetainEMA, rectify_
from gru_fast.cli import main
from gru_fast.data.pairs import PairCollator, UnlearnDataset
from gru_fast.unlearn import UnlearnTrainer
from gru_fast.unlearn.config import GRUOptions


def dataset() -> UnlearnDataset:
    plain = tiny.dataset()
    return UnlearnDataset(plain.forget, plain.retain, sets={"facts": tiny.rows(6, 17), "people": tiny.rows(3, 18)})


def nll(model: Any, part: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


def trained(folder: Path, resume: dict[str, Any] | None = None, **settings: Any) -> UnlearnTrainer:
    config = tiny.config(
        folder, method="ga", rectify=True, rectifier="gem", rectify_against="ema", gamma=0.3, tau=2.0,
        retain_sets=["facts", "people"], **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = UnlearnTrainer(tiny.llama(), config, PairCollator(0), dataset())
    trainer.train(**(resume or {}))
    return trainer


@pytest.mark.parametrize("stream", [False, True])
def test_training_is_what_a_loop_by_hand_does(tmp_path: Path, stream: bool) -> None:
    """Two micro-batches a step, an average for each of three sets; the loop takes plain autograd."""
    recorder = tiny.Recorder()
    config = tiny.config(
        tmp_path, method="ga", rectify=True, rectifier="gem", rectify_against="ema", gamma=0.3, tau=2.0, stream=stream,
        retain_sets=["facts", "people"], optim="sgd", learning_rate=0.05, weight_decay=0.0,
    )  # fmt: skip
    model = tiny.llama()
    ours = copy.deepcopy(model)
    trainer = UnlearnTrainer(model, config, recorder, dataset())
    trainer.train()
    keeper, params = RetainEMA(ours.parameters(), sets=3), list(ours.parameters())
    conflicts = 0
    for pair in zip(recorder.batches[::2], recorder.batches[1::2], strict=True):
        for place, part in enumerate(("retain", "facts", "people")):
            with keeper.collect(set=place):
                (sum(nll(ours, batch[part]) for batch in pair) / 2).backward()  # type: ignore[attr-defined]
        (sum(-nll(ours, batch["forget"]) for batch in pair) / 2).backward()  # type: ignore[attr-defined]
        conflicts += sum(entry.conflict for entry in rectify_(params, keeper, 0.3, 2.0, rule="gem").sets())
        with torch.no_grad():
            for param in params:
                assert param.grad is not None
                param.sub_(0.05 * param.grad)
                param.grad = None
    assert conflicts > 0
    for a, b, start in zip(model.parameters(), ours.parameters(), tiny.llama().parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) < 1e-3 * moved + 1e-8
    logged = trainer.state.log_history[0]
    assert {"retain_loss_facts", "cos_facts_set", "cos_people_set_after", "cos_retain_set"} <= logged.keys()
    assert all(entry.get("cos_facts_set_after", 0.0) >= -1e-6 for entry in trainer.state.log_history)
    assert "cos_retain" not in logged


def test_a_gradient_kept_before_training_is_not_gone_against(tmp_path: Path) -> None:
    """What an earlier request has changed: two steps of SGD leave its loss as it is, to first order."""
    config = tiny.config(
        tmp_path, method="ga", rectify=True, rectifier="subspace", rectify_against="ema", optim="sgd", max_steps=2,
        learning_rate=0.05, weight_decay=0.0,
    )  # fmt: skip
    model = tiny.llama()
    start = [param.detach().clone() for param in model.parameters()]
    trainer = UnlearnTrainer(model, config, PairCollator(0), tiny.dataset())
    ema = trainer.retain_ema
    assert isinstance(ema, RetainEMA)
    with ema.keep():
        nll(model, PairCollator(0)([{"earlier": row} for row in tiny.rows(4, 23)])["earlier"]).backward()
    trainer.train()
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(model.parameters(), start, strict=True)]).double()
    kept = torch.cat([k.flatten() for k in ema.kept[0]]).double()
    assert float(moved.norm()) > 0.0
    assert abs(float(moved @ kept)) <= 1e-5 * float(moved.norm() * kept.norm())


def test_a_run_is_resumed(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=1)
    saved = tmp_path / "whole" / "checkpoint-1"
    resumed = trained(tmp_path / "resumed", {"resume_from_checkpoint": str(saved)}, max_steps=-1)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_of_sets_are_drawn_by_themselves() -> None:
    data = dataset()
    assert data.parts == ("forget", "retain", "facts", "people")
    assert [data[i]["forget"]["input_ids"] for i in range(3)] == [
        tiny.dataset()[i]["forget"]["input_ids"] for i in range(3)
    ]
    assert [data[i]["retain"] for i in range(3)] == [tiny.dataset()[i]["retain"] for i in range(3)]
    drawn = {str(data[i]["facts"]["input_ids"]) for i in range(12)}
    assert 1 < len(drawn) <= 6
    first = data[0]["facts"]["input_ids"]
    data.set_epoch(1)
    assert any(data[i]["facts"]["input_ids"] != first for i in range(3))
    assert repr(data).startswith("UnlearnDataset(12 rows to forget, 20 to retain, 6 of facts, 3 of people")
    with pytest.raises(ValueError, match=r'^sets: expected other names than forget, retain, idk, got "idk"$'):
        UnlearnDataset(data.forget, data.retain, sets={"idk": tiny.rows(1, 0)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"^rectifier: expected gem or subspace with retain_sets, got gru$"),
        ({"rectifier": "gem", "granularity": "layer"}, r"^granularity: expected global with retain_sets, got layer$"),
        ({"rectify": False}, r"^retain_sets: expected rectify or monitor beside it"),
        ({"rectifier": "gem", "retain_sets": ["retain"]}, r"^retain_sets: expected 1 to 7 different names of parts"),
        (
            {"rectifier": "gem", "rectify_against": "ema", "warm_up_retain": 2},
            r"^warm_up_retain: expected 0 with retain_sets, got 2$",
        ),
    ],
)
def test_options_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRUOptions(**{"retain_sets": ["facts"], **settings})


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, method="ga", rectify=True, rectifier="gem", retain_sets=["facts"])
    with pytest.raises(
        ValueError, match=r"^train_dataset: expected the parts forget, retain, facts for ga with rectify"
    ):
        UnlearnTrainer(tiny.llama(), config, PairCollator(0), tiny.dataset())


def test_the_command_takes_tofus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tofu_folders.save_data(tmp_path / "tofu")
    model = tofu_folders.save_model(tmp_path / "model")
    command = [
        "unlearn", "--model", str(model), "--data", str(data), "--split", "forget05", "--method", "ga", "--rectify",
        "--rectifier", "gem", "--num-train-epochs", "1", "--use-cpu", "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main([*command, "--retain-sets", "world_facts", "real_authors"]) == 0
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert any("cos_world_facts_set" in entry for entry in logs)
    capsys.readouterr()
    assert main([*command, "--retain-sets", "history", "--overwrite-output-dir"]) != 0
    assert "retain_sets: tofu has real_authors, world_facts, got 'history'" in capsys.readouterr().err
