"""When a run is given up: the bound on Model Utility, worked by hand and against the metric itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from optuna.exceptions import TrialPruned
from scipy.stats import hmean
from tofu_folders import save_data, save_model

from gru_fast.sweep.prune import Reach, utility_bound


def test_bound() -> None:
    assert utility_bound(1.0) == 1.0
    assert utility_bound(0.0) == 0.0
    assert utility_bound(0.1) == pytest.approx(0.5)  # 9 / (10 + 8)


@pytest.mark.parametrize("probability", [1e-6, 0.03, 0.4, 0.95])
def test_bound_holds_whatever_the_other_numbers_are(probability: float) -> None:
    for others in ([1.0] * 8, [0.9, 1.0, 0.7, 0.2, 1.0, 0.99, 0.5, 0.3]):
        assert hmean([probability, *others]) <= utility_bound(probability) * (1 + 1e-12)
    assert hmean([probability, *[1.0] * 8]) == pytest.approx(utility_bound(probability))


class FakeTrial:
    def __init__(self) -> None:
        self.reported: dict[int, float] = {}
        self.constraints: dict[str, float] = {}

    def report(self, value: float, step: int) -> None:
        self.reported[step] = value

    def set_constraint(self, name: str, value: float) -> None:
        self.constraints[name] = value


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run's folder, an evaluation's options, a model, rows."""
    save_data(tmp_path / "data")
    save_model(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("template: plain\n")
    evaluation = {"split": "forget05", "data": str(tmp_path / "data"), "max_rows": 3, "max_length": 48}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    return tmp_path


def look(place: Path, least: float, step: int = 2, model: Any = None) -> FakeTrial:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trial: Any = FakeTrial()
    callback = Reach(SimpleNamespace(trial=trial), place / "run", place / "eval.yaml", least)  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = model or AutoModelForCausalLM.from_pretrained(place / "model")
    state = SimpleNamespace(global_step=step, max_steps=10, epoch=1.0)
    args = SimpleNamespace(num_train_epochs=5.0)
    callback.on_epoch_end(args, state, None, model=model, processing_class=tokenizer)
    return trial


def test_run_in_reach_goes_on(place: Path) -> None:
    trial = look(place, least=1e-6)
    assert set(trial.reported) == {1}
    probability = 1 / 44  # about: an untrained model of 44 words
    assert trial.reported[1] == pytest.approx(utility_bound(probability), rel=0.2)
    assert trial.constraints == {}


def test_run_out_of_reach_is_given_up(place: Path) -> None:
    with pytest.raises(
        TrialPruned, match=r"after epoch 1 of 5 the retain set has Probability 0\.0.*below the 0\.4500 to"
    ):
        look(place, least=0.45)


def test_last_epoch_is_evaluated_anyway(place: Path) -> None:
    assert look(place, least=0.45, step=10).reported == {}


def test_diverged_model_is_out_of_reach(place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / "model")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(TrialPruned, match=r"Probability 0\.0000, so that MU <= 0\.0000"):
        look(place, least=0.45, model=model)
