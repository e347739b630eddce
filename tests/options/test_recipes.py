"""Every recipe against the table of the paper (Appendix D, gammas as its other tables show them), method by method."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from gru_fast import benchmarks
from gru_fast.cli.commands import finetune, unlearn
from gru_fast.options import commands
from gru_fast.options import flags as options
from gru_fast.unlearn import methods

# recipe -> (template, split, learning rate, {method: (tau, gamma)})
TABLE: dict[str, tuple[str, str, float, dict[str, tuple[float | None, float]]]] = {
    "tofu-phi-forget05": (
        "phi", "forget05", 2e-5,
        {
            "ga": (0.01, 0.8), "wga": (0.01, 0.8), "gd": (None, 0.1), "npo": (0.01, 0.8), "npo_kl": (0.01, 0.8),
            "npo_gd": (0.01, 0.8), "simnpo": (0.01, 0.5), "simnpo_gd": (0.01, 0.5),
        },
    ),
    "tofu-phi-forget10": (
        "phi", "forget10", 2e-5,
        {
            "ga": (0.001, 0.8), "wga": (0.001, 0.8), "gd": (None, 0.1), "npo": (0.001, 0.8), "npo_kl": (0.001, 0.8),
            "npo_gd": (0.001, 0.8), "simnpo": (0.001, 0.5), "simnpo_gd": (0.001, 0.5),
        },
    ),
    "tofu-llama2-forget05": (
        "llama2-chat", "forget05", 1e-5,
        {
            "ga": (None, 0.8), "wga": (1.0, 0.8), "gd": (None, 0.05), "npo": (None, 0.8), "npo_kl": (1.0, 0.8),
            "npo_gd": (1.0, 0.8), "simnpo": (None, 0.5), "simnpo_gd": (None, 0.5),
        },
    ),
    "tofu-llama2-forget10": (
        "llama2-chat", "forget10", 1e-5,
        {
            "ga": (1.0, 0.8), "wga": (1.0, 0.8), "gd": (1.0, 0.05), "npo": (0.5, 0.8), "npo_kl": (0.1, 0.8),
            "npo_gd": (1.0, 0.8), "simnpo": (1.0, 0.5), "simnpo_gd": (1.0, 0.5),
        },
    ),
}  # fmt: skip
FINETUNE = {"tofu-phi-finetune": ("phi", 2e-5), "tofu-llama2-finetune": ("llama2-chat", 1e-5)}

# The unified framework's, configs/model/*.yaml at its commit d3d7cf9: family -> (model, published target, date_string)
UNIFIED = {
    "llama3": (
        "meta-llama/Llama-3.2-1B-Instruct",
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        {"date_string": "10 Apr 2025"},
    ),
    "qwen2.5": ("Qwen/Qwen2.5-1.5B-Instruct", None, None),
    "gemma": ("google/gemma-7b-it", None, None),
    "phi3.5": ("microsoft/Phi-3.5-mini-instruct", None, None),
}


def resolve(command: Any, *argv: str) -> Any:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    classes = getattr(commands, command.__name__.rpartition(".")[2])()
    return options.resolve(parser.parse_args([*argv, "--use-cpu"]), *classes, fill=command.fill)


def test_every_recipe_is_tested() -> None:
    # Those of other benchmarks are tested with them.
    recipes = [path.stem for path in options.recipes() if path.stem.startswith("tofu-")]
    unified = [f"tofu-{family}-{what}" for family in UNIFIED for what in ("finetune", "forget10")]
    assert sorted(recipes) == sorted([*TABLE, *FINETUNE, *unified])


@pytest.mark.parametrize("recipe", TABLE)
def test_unlearning_recipe(recipe: str) -> None:
    template, split, learning_rate, table = TABLE[recipe]
    for method, (tau, gamma) in table.items():
        model, data, config = resolve(unlearn, "--config", recipe, "--method", method, "--rectify")
        assert (method, config.method, config.tau, config.gamma) == (method, method, tau, gamma)
        assert (model.template, data.split, config.learning_rate) == (template, split, learning_rate)
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
        assert (config.num_train_epochs, config.lr_scheduler_type, config.max_grad_norm) == (5, "constant", 0)
        assert (config.weight_decay, config.rectify, config.bf16) == (0.01, True, True)
        assert config.output_dir == f"runs/tofu-{split}-{method}-gru"


@pytest.mark.parametrize("recipe", TABLE)
def test_other_methods_resolve_too(recipe: str) -> None:
    for method in sorted({*methods.names()} - {*TABLE[recipe][3]}):
        config = resolve(unlearn, "--config", recipe, "--method", method)[2]
        assert (config.method, config.gamma, config.rectify) == (method, 0.8, False)


@pytest.mark.parametrize("recipe", FINETUNE)
def test_finetuning_recipe(recipe: str) -> None:
    template, learning_rate = FINETUNE[recipe]
    model, data, config = resolve(finetune, "--config", recipe, "--subset", "retain95")
    assert (model.template, data.subset, config.learning_rate) == (template, "retain95", learning_rate)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
    assert (config.num_train_epochs, config.warmup_steps, config.weight_decay) == (5, 0.2, 0.01)
    assert (config.lr_scheduler_type, config.max_grad_norm, config.seed, config.bf16) == ("linear", 1.0, 42, True)
    assert data.max_length == 500


@pytest.mark.parametrize("family", UNIFIED)
def test_the_unified_frameworks_settings_of_unlearning(family: str) -> None:
    """Its configs/experiment/unlearn/tofu/default.yaml, trainer/finetune.yaml and trainer/METHOD.yaml."""
    recipe, (_, target, variables) = f"tofu-{family}-forget10", UNIFIED[family]
    if target is None:
        with pytest.raises(ValueError, match="model: no value; give --model"):
            resolve(unlearn, "--config", recipe)
    for method in methods.names():
        given = ["--model", target or "runs/taught", "--method", method]
        model, data, config = resolve(unlearn, "--config", recipe, *given)
        assert (model.template, model.template_options, data.split) == ("chat", variables, "forget10")
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
        assert (config.learning_rate, config.num_train_epochs, config.warmup_steps) == (1e-5, 10, 0.1)
        assert (config.lr_scheduler_type, config.weight_decay, config.max_grad_norm) == ("linear", 0.01, 1.0)
        assert (config.bf16, config.seed, data.max_length, config.method) == (True, 0, 512, method)
        made = config.make_method()
        if method == "satimp":
            assert (made.beta1, made.beta2, made.forget_weight, made.retain_weight) == (5, 1, 0.1, 1)
        if method == "rmu":
            assert (made.steering, made.alpha, made.layer, made.trained) == (2, 1, 7, ".*")
        if method == "simnpo_gd":
            assert (made.beta, made.delta, made.forget_weight, made.retain_weight) == (4.5, 0, 0.125, 1)


@pytest.mark.parametrize("family", UNIFIED)
def test_the_unified_frameworks_settings_of_finetuning(family: str) -> None:
    hub, _, variables = UNIFIED[family]
    model, data, config = resolve(finetune, "--config", f"tofu-{family}-finetune", "--subset", "retain90")
    assert (model.model, model.template, model.template_options) == (hub, "chat", variables)
    assert (data.subset, data.max_length, config.learning_rate, config.seed) == ("retain90", 512, 1e-5, 0)
    assert (config.num_train_epochs, config.warmup_steps, config.lr_scheduler_type) == (5, 0.2, "linear")
    other = resolve(finetune, "--config", f"tofu-{family}-finetune", "--model", "another/size")[0]
    assert (other.model, other.template_options) == ("another/size", variables)


def test_the_unified_frameworks_settings_of_the_evaluation() -> None:
    """Its configs/data/datasets/TOFU_*.yaml, generation/default.yaml and tofu_metrics/forget_Q_A_gibberish.yaml."""
    parser = argparse.ArgumentParser()
    classes = commands.evaluate(benchmarks.evaluation("tofu"))
    options.add(parser, *classes)
    args = parser.parse_args(["--config", "open-unlearning-eval", "--model", "m", "--split", "forget10"])
    chosen = options.resolve(args, *classes)[0]
    assert (chosen.max_rows, chosen.max_length, chosen.max_new_tokens, chosen.gibberish_tokens) == (0, 512, 200, 32)


def test_recipes_hold_overrides_only() -> None:
    for path in options.recipes():
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ")  # what `gru-fast ls` says of it
        assert len(lines) < 20
