"""When a run is given up: the bound on Model Utility, worked by hand and against the metric itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from scipy.stats import hmean
from tofu_folders import save_data, save_model

from gru_fast.jobs.doing import Pruned
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


def look(place: Path, least: float, step: int = 2, model: Any = None) -> Reach:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    callback = Reach(place / "run", place / "eval.yaml", least)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = model or AutoModelForCausalLM.from_pretrained(place / "model")
    state = SimpleNamespace(global_step=step, max_steps=10, epoch=1.0)
    args = SimpleNamespace(num_train_epochs=5.0)
    callback.on_epoch_end(args, state, None, model=model, processing_class=tokenizer)
    return callback


def test_run_in_reach_goes_on(place: Path) -> None:
    bounds = look(place, least=1e-6).bounds
    assert set(bounds) == {"1"}
    probability = 1 / 44  # about: an untrained model of 44 words
    assert bounds["1"] == pytest.approx(utility_bound(probability), rel=0.2)


def test_run_out_of_reach_is_given_up(place: Path) -> None:
    with pytest.raises(
        Pruned, match=r"after epoch 1 of 5 the retain set has Probability 0\.0.*below the 0\.4500 to"
    ) as caught:
        look(place, least=0.45)
    (most,) = caught.value.facts["utility_bounds"].values()
    assert caught.value.facts["missing_utility"] == pytest.approx(0.45 - most)


def test_last_epoch_is_evaluated_anyway(place: Path) -> None:
    assert look(place, least=0.45, step=10).bounds == {}


def test_diverged_model_is_out_of_reach(place: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / "model")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(Pruned, match=r"Probability 0\.0000, so that MU <= 0\.0000"):
        look(place, least=0.45, model=model)
