"""Merge an adapter into the model that it is for, and write a model that stands alone.

    gru-fast merge --model runs/tofu-forget05-npo-gru                 into runs/tofu-forget05-npo-gru/merged
    gru-fast merge --model RUN --dtype bfloat16 --output-dir served/
    gru-fast merge --model RUN --into-4bit                            into what the 4 bits of its training stand for

An adapter that was trained on a base in 4 bits (--load-in-4bit) has been trained beside other values than those of the
base as it is: --into-4bit merges into these, and gives the model that was evaluated; without it the result is a little
another one, evaluate it. Weights are written in --dtype; rounded to 4 bits again, much of the unlearning is lost
(docs/larger-models.md).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELP = "merge an adapter into its base model"


@dataclass
class MergeOptions:
    """Into what, and where to."""

    output_dir: str | None = field(
        default=None, metadata={"help": "folder of the model, new or empty; by default merged in that of --model"}
    )
    into_4bit: bool = field(
        default=False,
        metadata={
            "help": "merge into the values that the base's 4 bits stand for, as in the training, by its own options"
        },
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import flags as options

    options.add(parser, *_classes())


def run(args: argparse.Namespace) -> int:
    from gru_fast import models
    from gru_fast.models.load import config_of, four_bit_of_run, load_merged, template_of_run
    from gru_fast.options import flags as options

    how, model = options.resolve(args, *_classes(), fill=_fill)
    if args.print_config:
        print(options.config_text((how, model), args), end="")
        return 0
    if "load_in_4bit" in vars(args):
        raise ValueError("load_in_4bit: what is merged is written in --dtype; --into-4bit says into what")
    target = Path(how.output_dir or Path(model.model) / "merged")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"--output-dir: expected a new or an empty folder, got {target}")
    trained = four_bit_of_run(model.model)
    if how.into_4bit and not trained and config_of(model.model):
        raise ValueError(f"into_4bit: {model.model} was not trained on a base in 4 bits; leave it out")
    merged = load_merged(model, into_4bit=how.into_4bit, rounded_from=trained.get("dtype"))
    tokenizer = models.load_tokenizer(model)
    _save(target, merged, tokenizer)
    print(f"{target}: {model.model} in {str(merged.dtype).removeprefix('torch.')}, {_said(how, model)}")
    template = template_of_run(config_of(model.model)).get("template")
    if template and not config_of(str(target)):
        print(f"{target}: not in its run's folder, which says how it was asked: give --template {template} with it")
    return 0


def _save(target: Path, *parts: Any) -> None:
    """Writes them, so that the folder is there as a whole or not at all; what a killed merge has left is gone then."""
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    for part in parts:
        part.save_pretrained(partial)
    partial.replace(target)  # an empty folder too


def _said(how: MergeOptions, model: Any) -> str:
    if not how.into_4bit:
        return "merged into its base"
    double = " with scales in 8 bits" if model.bnb_4bit_use_double_quant else ""
    return f"merged into what {model.bnb_4bit_quant_type}{double} makes of its base"


def _fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of the model says of options that were not given."""
    from gru_fast.models.load import four_bit_of_run

    found = four_bit_of_run(values["model"]) if values.get("model") else {}
    return {name: value for name, value in found.items() if name != "dtype"}  # here it is of what is written


def _classes() -> tuple[type, ...]:
    from gru_fast.options.commands import model_to_read

    return MergeOptions, model_to_read()
