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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

HELP = "unlearn a split of a benchmark"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import training
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    training.add_flags(parser)
    training.add_print_rows(parser)
    from gru_fast.options.epochs import EpochOptions

    model, _, config = commands.unlearn()
    options.add(parser, model, commands.data_of_all(), EpochOptions, config)


def run(args: argparse.Namespace, callbacks: Iterable[TrainerCallback] = ()) -> int:
    """``callbacks``: of a caller in Python, for the trainer."""
    from gru_fast.cli import chosen, training
    from gru_fast.evaluation import points
    from gru_fast.options import commands
    from gru_fast.options.epochs import EpochOptions
    from gru_fast.unlearn import UnlearnTrainer

    training.take_saved_config(args)
    benchmark = chosen.benchmark(args)
    of_model, of_data, of_training = commands.unlearn(benchmark)
    instances = training.ready(args, (of_model, of_data, EpochOptions, of_training), fill)
    if instances is None:
        return 0
    model, data, epochs, config = instances
    evaluation = _evaluation(epochs, data)
    method = config.make_method()
    config.method_options = dataclasses.asdict(method)  # for the record: defaults too
    config.rectifier_options = dataclasses.asdict(config.make_rule()) or None
    training.fit_lengths(benchmark, model, data, shown=config.process_index == 0)
    tokenizer, template = training.load_tokenizer(args, instances)
    train_data, eval_data = _datasets(benchmark, data, config, tokenizer, template)
    if training.print_rows(args, train_data, tokenizer, config.process_index):
        return 0
    trainer = UnlearnTrainer(
        model=training.load_model(instances, tokenizer),
        args=config,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    if evaluation is not None:
        _evaluate_epochs(trainer, data.benchmark, evaluation, epochs, template)
    facts = {
        "command": "unlearn",
        "benchmark": data.benchmark,
        "method": method.name,
        "title": method.title,
        "rectify": config.rectify,
        "rectifier": config.rectifier,
        "split": data.split,
        "model": model.model,
        "rows": training.facts_of_rows({"forget": train_data.forget, "retain": train_data.retain}),
    }
    status = training.train(args, instances, trainer, facts)
    if evaluation is not None and trainer.is_world_process_zero():
        along = points.read(Path(config.output_dir))
        print(f"{config.output_dir}: {'best/ is of epoch ' if along and along.best else ''}{along}")
    return status


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what the run is."""
    from gru_fast import benchmarks

    title = benchmarks.get(values["benchmark"]).title(argparse.Namespace(**values))
    rectified = f"-{values['rectifier']}" if values["rectify"] else ""
    return {"output_dir": f"runs/{title}-{values['method']}{rectified}"}


def _evaluation(epochs: Any, data: Any) -> Any:
    """The options of the evaluation while training, None without; what it would refuse, before anything is loaded."""
    if epochs.eval_epochs is None:
        return None
    from gru_fast.cli import evaluating
    from gru_fast.evaluation.judge import JUDGES

    if data.benchmark not in JUDGES:
        raise ValueError(
            f"eval_epochs: models are judged on {' or '.join(JUDGES)}, got {data.benchmark}; leave it out, and "
            "evaluate checkpoints (--save-strategy epoch) with gru-fast eval"
        )
    found = evaluating.options_of(data, epochs.retain_logs, epochs.eval_options, "eval_options")
    if data.benchmark == "tofu":
        _check_retained(epochs.retain_logs, data.split)
    return found


def _check_retained(retain_logs: str | None, split: str) -> None:
    if retain_logs is None:
        raise ValueError(
            "eval_epochs: expected retain_logs as well, for Forget Quality; give --retain-logs, the retrained model's "
            "run or a log of it"
        )
    from gru_fast.metrics.logs import read_log

    read_log(retain_logs, split)


def _evaluate_epochs(trainer: Any, name: str, evaluation: Any, epochs: Any, template: Any) -> None:
    """Has the trainer evaluate on the benchmark ``name``."""
    from gru_fast import benchmarks
    from gru_fast.evaluation.epochs import EpochEvaluations
    from gru_fast.evaluation.judge import JUDGES
    from gru_fast.evaluation.subject import Subject

    config = trainer.args
    if trainer.is_sharded or trainer.is_for_zero3:
        raise ValueError(
            "eval_epochs: not with FSDP2 or ZeRO-3, of which no process has the whole model; evaluate what is saved"
        )
    benchmark = benchmarks.evaluation(name)
    folder = Path(config.output_dir)

    def evaluate(model: Any, tokenizer: Any, place: Path) -> Mapping[str, float | None]:
        subject = Subject(
            asked={"model": str(folder), "step": int(place.name)},
            output_dir=place,
            load=lambda: (model, tokenizer, template),
            is_older_than=lambda file: True,
            batch_size=config.per_device_eval_batch_size,
            progress=not config.disable_tqdm,
        )
        found: Mapping[str, float | None] = benchmark.columns(benchmark.run(evaluation, subject))
        return found

    callback = EpochEvaluations(
        evaluate, JUDGES[name], folder, every=epochs.eval_epochs, share=epochs.share, log=trainer.log
    )
    trainer.add_callback(callback)


def _datasets(benchmark: Any, data: Any, config: Any, tokenizer: Any, template: Any) -> tuple[Any, Any]:
    """The rows to train on, and to evaluate on if asked for: there are no validation data, so the same, paired anew."""
    parts = {*config.make_method().parts, *(["retain"] if config.follows_retain else [])}
    known = getattr(benchmark, "RETAIN_SETS", ())
    for name in config.retain_sets or []:
        if name not in known:
            raise ValueError(f"retain_sets: {data.benchmark} has {', '.join(known) or 'none'}, got {name!r}")
    parts |= {*(config.retain_sets or [])}
    seed = config.seed if config.data_seed is None else config.data_seed
    seeds = [seed] if config.eval_strategy == "no" else [seed, seed + 1]
    found = [benchmark.unlearning(data, tokenizer, template, sorted(parts), seed) for seed in seeds]
    return found[0], found[1] if len(found) > 1 else None
