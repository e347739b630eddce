"""Teach a model TOFU: all of it (the model that is to forget), or what is left without a forget split (retrained).

    gru-fast finetune --model microsoft/phi-1_5 --data ../tofu --subset full
    gru-fast finetune --config tofu-phi-finetune --subset retain95

Leaves a run folder, as gru-fast unlearn does. The model of --subset full is where unlearning starts; that of retain95
is what a model that has forgotten forget05 should look like, and Forget Quality compares with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

HELP = "teach a model TOFU, or TOFU without a forget split"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import training
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    training.add_flags(parser)
    options.add(parser, *commands.finetune())


def run(args: argparse.Namespace) -> int:
    from gru_fast.benchmarks.tofu.rows import finetuning_data
    from gru_fast.cli import training
    from gru_fast.options import commands
    from gru_fast.unlearn.finetune import finetune_trainer

    training.take_saved_config(args)
    instances = training.ready(args, commands.finetune(), fill)
    if instances is None:
        return 0
    model, data, config = instances
    tokenizer, template = training.load_tokenizer(args, instances)
    rows = finetuning_data(tokenizer, template, data.subset, data.data, data.max_length)
    trainer = finetune_trainer(training.load_model(instances, tokenizer), config, rows, tokenizer)
    facts = {
        "command": "finetune",
        "benchmark": "tofu",
        "subset": data.subset,
        "model": model.model,
        "rows": training.facts_of_rows({"all": rows}),
    }
    return training.train(args, instances, trainer, facts)


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what the run is."""
    return {"output_dir": f"runs/tofu-{values['subset']}"}
