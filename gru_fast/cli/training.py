"""What the commands that train have in common: the run folder, going on after a stop, the last word."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast import runs
from gru_fast.options import flags as options
from gru_fast.runs.checkpoint import last_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--resume` and `--overwrite-output-dir`."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output-dir from its last checkpoint, with its own config.yaml unless --config is "
        "given; without a checkpoint it begins again. Checkpoints are written every --save-steps",
    )
    parser.add_argument("--overwrite-output-dir", action="store_true", help="clear --output-dir of the run in it")


def add_print_rows(parser: argparse.ArgumentParser) -> None:
    """`--print-rows N`."""
    parser.add_argument(
        "--print-rows",
        type=int,
        metavar="N",
        help="print the first N rows of each part as they would be trained on, tokens and which are scored, and stop",
    )


def print_rows(args: argparse.Namespace, data: Any, tokenizer: Any, rank: int) -> bool:
    """With `--print-rows`, the first process prints the first rows of each part of an UnlearnDataset.

    Returns:
        Whether that was asked for.

    Raises:
        ValueError: less than one row.
    """
    if args.print_rows is None:
        return False
    if args.print_rows < 1:
        raise ValueError(f"--print-rows: expected at least 1, got {args.print_rows}")
    from gru_fast.data.own import showing

    parts = {"forget": data.forget, "retain": data.retain, **data.sets}
    rows = [
        (f"{part} {index + 1} of {len(found)}" + _document_of(found[index]), found[index])
        for part, found in parts.items()
        if found is not None
        for index in range(min(args.print_rows, len(found)))
    ]
    if rank == 0:
        print(showing.show(rows, tokenizer, color=showing.wants_color(sys.stdout)))
    return True


def _document_of(row: Any) -> str:
    return f" ({row['document']})" if "document" in row else ""


def take_saved_config(args: argparse.Namespace, is_begun: Callable[[Path], bool] = runs.is_run) -> None:
    """With `--resume` and no `--config`, the options of what ``is_begun`` in the output folder."""
    folder = getattr(args, "output_dir", None)
    if args.resume and not args.config and folder and is_begun(Path(folder)):
        args.config = str(Path(folder) / runs.CONFIG)


def ready(
    args: argparse.Namespace,
    classes: Sequence[type],
    fill: Callable[[dict[str, Any]], Mapping[str, Any]],
    after: Callable[[tuple[Any, ...]], bool] = lambda instances: False,
) -> tuple[Any, ...] | None:
    """The options of a run that is to be trained now; None where they are only printed, or the run has finished.

    Args:
        after: does what is left to do with a run that has finished; returns whether there was something.

    Raises:
        ValueError, FileExistsError: options that cannot be, all at once; a folder that is not empty.
    """
    from gru_fast import models

    instances = options.resolve(args, *classes, fill=fill)
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return None
    models.check_training(instances[0])
    if _already_done(args, instances):
        if not after(instances) and instances[-1].process_index == 0:
            print(f"{instances[-1].output_dir}: this run has finished; nothing to resume")
        return None
    take_one_device(instances[-1])
    return instances


def _already_done(args: argparse.Namespace, instances: Sequence[Any]) -> bool:
    """Looks at the output folder before anything is loaded; True if `--resume` finds a run that has finished.

    Raises:
        FileExistsError: a folder that is not empty.
        ValueError: a folder to be cleared that has the model in it.
    """
    folder = instances[-1].output_dir
    if instances[-1].process_index != 0:
        return _has_finished(args, folder)
    model = Path(instances[0].model).expanduser().resolve()
    if args.overwrite_output_dir and Path(folder).resolve() in {model, *model.parents}:
        raise ValueError(f"--overwrite-output-dir would clear --model {model}; choose another --output-dir")
    runs.check_folder(folder, resume=args.resume, overwrite=args.overwrite_output_dir)
    return _has_finished(args, folder)


def _has_finished(args: argparse.Namespace, folder: str) -> bool:
    return bool(args.resume and runs.is_run(folder) and runs.read_run(folder).complete)


def take_one_device(config: TrainingArguments) -> None:
    """Uses one GPU where several are visible: Trainer would take them all, and a step as many times the rows."""
    if config.n_gpu > 1:
        print(
            f"{config.n_gpu} GPUs are visible and one is used; for all of them start this command with torchrun "
            f"--nproc-per-node {config.n_gpu} -m gru_fast.cli, or accelerate launch",
            file=sys.stderr,
        )
        config._n_gpu = 1


def load_tokenizer(args: argparse.Namespace, instances: Sequence[Any]) -> tuple[Any, Any]:
    """Tokenizer and template. Its name and variables go into the options, which are then all known.

    Raises:
        ValueError: `--resume` with other options than the run's.
    """
    from gru_fast import models

    model, config = instances[0], instances[-1]
    tokenizer = models.load_tokenizer(model)
    template = models.load_template(model, tokenizer)
    model.template, model.template_options = template.name, dict(template.options) or None
    if config.process_index == 0:
        text = options.config_text(instances)
        runs.check_folder(config.output_dir, text, resume=args.resume, overwrite=args.overwrite_output_dir)
    return tokenizer, template


def fit_lengths(benchmark: Any, model: Any, data: Any, *, shown: bool = True) -> None:
    """Fills in the benchmark's ``default_lengths(data)``, as far as the model has positions, and says where it has
    fewer."""
    from gru_fast.models import positions_of

    lengths = benchmark.default_lengths(data)
    positions = positions_of(model) if lengths else None
    for name, default in lengths.items():
        length = default if positions is None else min(default, positions)
        if length < default and shown:
            flag = options.flag(name)
            print(f"{flag}: {length}, the positions of the model, in place of {default}", file=sys.stderr)
        if length < default or name == "max_length":  # others stay open: a run that was begun so can be resumed
            setattr(data, name, length)


def load_model(instances: Sequence[Any], tokenizer: Any) -> Any:
    """The model, ready to train; a new LoRA adapter is drawn with the run's seed."""
    from transformers import set_seed

    from gru_fast import models

    set_seed(instances[-1].seed)
    model = models.load_model(instances[0], train=True, device=instances[-1].device)
    models.check_vocabulary(model, tokenizer)
    return model


def facts_of_rows(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How many rows each part has, and their hash; none of rows that are tokenized when they are read."""
    from gru_fast.data.sequences import LazyRows, rows_hash

    return {
        name: {"count": len(rows), **({} if isinstance(rows, LazyRows) else {"hash": rows_hash(rows)})}
        for name, rows in parts.items()
        if rows is not None
    }


def train(args: argparse.Namespace, instances: Sequence[Any], trainer: Trainer, facts: Mapping[str, Any]) -> int:
    """Makes the run folder, trains, and says what came of it. ``instances``: all options, the trainer's last."""
    config = instances[-1]
    checkpoint = None
    if config.process_index == 0:
        checkpoint = runs.start(
            config.output_dir,
            options.config_text(instances, args),
            resume=args.resume,
            overwrite=args.overwrite_output_dir,
        )
        if args.resume:
            print(f"{config.output_dir}: {f'going on from {checkpoint.name}' if checkpoint else 'no checkpoint yet'}")
    elif args.resume:
        checkpoint = last_checkpoint(config.output_dir)
    try:
        result = runs.train(trainer, facts, checkpoint)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command with --resume goes on in {config.output_dir}", file=sys.stderr)
        raise
    if trainer.is_world_process_zero():
        print(_last_word(config.output_dir, result))
    return 0


def _last_word(folder: str, result: Mapping[str, Any]) -> str:
    pace = result["seconds_per_step"]
    parts = [
        f"{result['steps']} steps in {result['seconds']:.1f} s",
        f"{pace:.3g} s per step" if pace else "",
        f"peak memory {result['peak_memory_bytes'] / 2**20:.0f} MiB ({result['memory_of']})",
        f"{result['skipped']} skipped" if result["skipped"] else "",
    ]
    return f"{folder}: {', '.join(part for part in parts if part)}"
