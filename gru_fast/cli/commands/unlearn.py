"""Take a benchmark's forget split out of a model, with or without GRU (--rectify).

    gru-fast unlearn --model runs/tofu-full --data ../tofu --split forget05 --method npo --rectify
    gru-fast unlearn --config tofu-phi-forget05 --method gd --rectify
    gru-fast unlearn --config muse-books --method npo_gd --rectify

Leaves a run folder: the model, every option as it was used, versions, the log of every step, the result. Evaluate it
with gru-fast eval, compare such folders with gru-fast report. Wherever an option is not given, its default holds, or
what --config says, a file or a recipe; gru-fast ls lists methods with their own options, recipes and templates.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

HELP = "unlearn a split of a benchmark"

_DEFAULT = "tofu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import training
    from gru_fast.options import flags as options

    training.add_flags(parser)
    model, _, config = option_classes()
    options.add(parser, model, _data_flags(), config)


def run(args: argparse.Namespace, callbacks: Iterable[TrainerCallback] = ()) -> int:
    """``callbacks``: of a caller in Python, for the trainer."""
    from gru_fast import benchmarks
    from gru_fast.cli import training
    from gru_fast.options import flags as options
    from gru_fast.unlearn import UnlearnTrainer

    training.take_saved_config(args)
    benchmark = benchmarks.get(_chosen(args))
    _refuse_others(args, benchmark)
    instances = options.resolve(args, *option_classes(benchmark), fill=_fill)
    model, data, config = instances
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return 0
    if training.already_done(args, instances):
        return 0
    training.take_one_device(config)
    method = config.make_method()
    config.method_options = dataclasses.asdict(method)  # for the record: defaults too
    tokenizer, template = training.load_tokenizer(args, instances)
    train_data, eval_data = _datasets(benchmark, data, config, tokenizer, template)
    trainer = UnlearnTrainer(
        model=training.load_model(instances, tokenizer),
        args=config,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    facts = {
        "command": "unlearn",
        "benchmark": data.benchmark,
        "method": method.name,
        "title": method.title,
        "rectify": config.rectify,
        "rectifier": config.rectifier,
        "split": data.split,
        "model": model.model,
    }
    return training.train(args, instances, trainer, facts)


def option_classes(benchmark: Any = None) -> tuple[type, ...]:
    """Options of the model, of the data, of the training. ``benchmark``: its module; None: the default one's."""
    from gru_fast import benchmarks
    from gru_fast.models.load import ModelOptions
    from gru_fast.unlearn import UnlearnConfig

    return ModelOptions, (benchmark or benchmarks.get(_DEFAULT)).Options, UnlearnConfig


def _data_flags() -> type:
    """The options of all benchmarks as one class, for flags and help alone: which are in use is known later."""
    from gru_fast import benchmarks

    hints: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for name in benchmarks.names():
        cls = benchmarks.get(name).Options
        for field in dataclasses.fields(cls):
            hints.setdefault(field.name, typing.get_type_hints(cls)[field.name])
            default = "" if field.default is None else f" (default: {field.default})"
            texts.setdefault(field.name, []).append(f"{name}: {field.metadata['help']}{default}")
    texts["benchmark"] = [f"what to forget from (default: {_DEFAULT})"]
    choices = {"benchmark": tuple(benchmarks.names())}
    fields = []
    for name in sorted(hints, key=lambda name: name != "benchmark"):
        metadata = {"help": "; ".join(texts[name]), "choices": choices.get(name, ())}
        fields.append((name, hints[name], dataclasses.field(default=None, metadata=metadata)))
    return dataclasses.make_dataclass("DataOptions", fields)


def _chosen(args: argparse.Namespace) -> str:
    """Name of the benchmark: a flag's, else the config file's, else the default."""
    from gru_fast.options import flags as options

    content = options.read_config(args.config)[0] if args.config else {}
    return str(getattr(args, "benchmark", content.get("benchmark", _DEFAULT)))


def _refuse_others(args: argparse.Namespace, benchmark: Any) -> None:
    """Refuses a flag that is another benchmark's: it would do nothing."""
    from gru_fast.options import flags as options

    own = {field.name for field in dataclasses.fields(benchmark.Options)}
    unused = [field.name for field in dataclasses.fields(_data_flags()) if field.name not in own]
    given = [options.flag(name) for name in unused if name in vars(args)]
    if given:
        raise ValueError(f"{given[0]}: no option of --benchmark {_chosen(args)}; leave it out")


def _fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what the run is."""
    from gru_fast import benchmarks

    title = benchmarks.get(values["benchmark"]).title(argparse.Namespace(**values))
    rectified = f"-{values['rectifier']}" if values["rectify"] else ""
    return {"output_dir": f"runs/{title}-{values['method']}{rectified}"}


def _datasets(benchmark: Any, data: Any, config: Any, tokenizer: Any, template: Any) -> tuple[Any, Any]:
    """The rows to train on, and to evaluate on if asked for: there are no validation data, so the same, paired anew."""
    parts = {*config.make_method().parts, *(["retain"] if config.follows_retain else [])}
    seed = config.seed if config.data_seed is None else config.data_seed
    seeds = [seed] if config.eval_strategy == "no" else [seed, seed + 1]
    found = [benchmark.unlearning(data, tokenizer, template, sorted(parts), seed) for seed in seeds]
    return found[0], found[1] if len(found) > 1 else None
