"""Rectifiers in the trainer: options and what they refuse; every rule against a loop by hand; checkpoints."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional as F

from gru_fast import RetainEMA, RetainGradient, rectify_
from gru_fast.cli import main
from gru_fast.core.rules import RULES, rule_of
from gru_fast.unlearn import PairCollator, UnlearnTrainer
from gru_fast.unlearn.config import GRUOptions


def test_what_each_is_rectified_against() -> None:
    for name, rule in RULES.items():
        options = GRUOptions(rectifier=name, gamma=0.3)
        assert options.against == rule.against == ("ema" if name == "gru" else "retain")
        assert options.keeps_average == (name == "gru")
        assert options.ema_gamma == (0.3 if name == "gru" else 1.0)
        assert GRUOptions(rectifier=name, stream=True).keeps_average
        assert GRUOptions(rectifier=name, rectify_against="ema", gamma=0.3).ema_gamma == 0.3
    assert GRUOptions(rectify=False, monitor=True, rectify_against="retain").keeps_average
    assert GRUOptions(rectify_against="retain", gamma=0.3).ema_gamma == 1.0
    made = GRUOptions(rectifier="pcgrad", rectifier_options={"form": "mean"}).make_rule()
    assert made == rule_of("pcgrad", {"form": "mean"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rectifier": "pcgrad", "rectifier_options": {"forms": "sum"}},
            r"^pcgrad: expected one of form, w_f, w_r, got",
        ),
        ({"rectifier": "hamu", "rectifier_options": {"q": -1.0}}, r"^hamu\.q: expected a finite number of at least 0"),
        ({"rectifier_options": {"w_f": 1.0}}, r"^gru: expected no options, got 'w_f'$"),
        (
            {"rectifier": "gu", "rectifier_options": "w_f"},
            r"^rectifier_options: expected name: value pairs, got 'w_f'$",
        ),
        ({"granularity": "module"}, r"^granularity: expected one of global, tensor, layer, got 'module'$"),
        ({"rectifier": "sago", "granularity": "layer"}, r"^granularity: expected global with sago, which decides"),
        ({"rectify_against": "r"}, r"^rectify_against: expected one of none, ema, retain, got 'r'$"),
        (
            {"rectifier": "gdr", "monitor_retain": True},
            r"^monitor_retain: expected rectify or monitor, against an average",
        ),
        ({"stream": True, "monitor_retain": True}, r"^monitor_retain: expected without stream, where the retain"),
        ({"rectifier": "gdr", "ema_dtype": "bfloat16"}, r"^ema_dtype: expected none, since gdr keeps no average here;"),
    ],
)
def test_options_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRUOptions(**settings)


def nll(model: Any, part: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


RUNS: list[tuple[str, dict[str, Any], str | None]] = [
    ("pcgrad", {"form": "mean"}, None), ("blur", {}, None), ("cagrad", {"c": 0.4}, None), ("hamu", {"q": 0.1}, None),
    ("mgda", {}, "ema"), ("gru", {}, "retain"), ("pcgrad", {}, "by tensor"),
    ("sago", {"w_r": 0.5}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "against"), RUNS)
def test_training_is_what_a_loop_by_hand_does(
    name: str, options: dict[str, Any], against: str | None, tmp_path: Path
) -> None:
    """Two micro-batches a step; the loop takes plain autograd and rectify_, which the rules' own tests hold."""
    granularity: Any = "global"
    if against == "by tensor":
        against, granularity = None, "tensor"
    model = tiny.llama()
    ours = copy.deepcopy(model)
    recorder = tiny.Recorder()
    config = tiny.config(
        tmp_path, method="ga", rectifier=name, rectifier_options=options, rectify_against=against, gamma=0.3, tau=2.0,
        granularity=granularity, optim="sgd", learning_rate=0.05, weight_decay=0.0, rectify=True,
    )  # fmt: skip
    trainer = UnlearnTrainer(model, config, recorder, tiny.dataset())
    trainer.train()
    keeper = RetainEMA(ours.parameters()) if against == "ema" else None
    assert isinstance(trainer.retain_ema, RetainGradient if keeper is None else RetainEMA)
    params = list(ours.parameters())
    for pair in zip(recorder.batches[::2], recorder.batches[1::2], strict=True):
        retain = torch.autograd.grad(sum(nll(ours, batch["retain"]) for batch in pair) / 2, params)  # type: ignore[arg-type]
        grads = torch.autograd.grad(sum(-nll(ours, batch["forget"]) for batch in pair) / 2, params)  # type: ignore[arg-type]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        gamma = 0.3 if keeper is not None else None
        rectify_(params, keeper, gamma, 2.0, retain_grads=retain, rule=rule_of(name, options), granularity=granularity)
        with torch.no_grad():
            for param in params:
                assert param.grad is not None
                param.sub_(0.05 * param.grad)
    for a, b, start in zip(model.parameters(), ours.parameters(), tiny.llama().parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) < 1e-3 * moved + 1e-8
    assert any("cos_after" in entry for entry in trainer.state.log_history)


def test_a_run_without_an_average_is_resumed(tmp_path: Path) -> None:
    def trained(folder: Path, **resume: Any) -> UnlearnTrainer:
        config = tiny.config(
            folder, method="npo_gd", rectify=True, rectifier="pcgrad", save_strategy="steps", save_steps=1
        )
        torch.manual_seed(0)
        trainer = UnlearnTrainer(tiny.llama(), config, PairCollator(0), tiny.dataset())
        trainer.train(**resume)
        return trainer

    whole = trained(tmp_path)
    saved = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert (saved[0] / "gru_state.pt").stat().st_size < 4000  # counts, and no tensors
    resumed = trained(tmp_path, resume_from_checkpoint=str(saved[0]))
    assert resumed.retain_ema.step == whole.retain_ema.step
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ls_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "rectifiers", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rectifiers"]}
    assert found.keys() == RULES.keys()
    assert [option["name"] for option in found["pcgrad"]["options"]] == ["form", "w_f", "w_r"]
    assert main(["ls", "rectifiers"]) == 0
    said = capsys.readouterr().out
    assert "--rectifier NAME --rectifier-options OPTION=VALUE" in said
    assert "form=one_sided  what is projected, and how the two are joined (one_sided, sum, mean)" in said
