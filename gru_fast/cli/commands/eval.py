"""Evaluate a model on a benchmark, or print the numbers of an evaluation that is there.

  gru-fast eval tofu --model RUN --retain-logs RETAINED_RUN
  gru-fast eval tofu --from-logs eval_log_aggregated.json --retain-logs TOFU_EVAL.json
  torchrun --nproc-per-node 8 -m gru_fast.cli eval tofu --model RUN

Every scored row is kept at once (of WMDP, every task): a stopped evaluation goes on where it was, a finished one is
only printed. Processes that torchrun or accelerate launch starts share the rows, each with the whole model on an
accelerator of its own; the records are those of one process, and any number of processes goes on with them.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.models import ModelOptions

# A benchmark is a file gru_fast/benchmarks/NAME_eval.py with
#
# HELP                            one line for the list of benchmarks
# Options                         a dataclass: its flags
# defaults_of_run(config)         values for them that the configuration of the model's run gives
# needs_model(options)            False: the numbers come from logs
# title(options)                  names the evaluation, and its folder in the model's
# run(options, subject) -> dict   the summary (a gru_fast.benchmarks.scoring.Subject, which loads the model if need be)
# report(summary) -> str          it in words
# columns(summary) -> dict        its numbers by heading, for `gru-fast report`
# PLANE                           two of the headings, retention and removal: {heading: which way is better}
#
# A new file there is a new `gru-fast eval NAME`; nothing else needs to know.
_SUFFIX = "_eval"

HELP = "score a model on a benchmark; forget quality, model utility"

_MODEL_FIELDS = ("model", "revision", "tokenizer", "template", "dtype", "attn_implementation")
_MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "tokenizer*", "adapter_config.json")


@dataclass
class EvalOptions:
    """How to evaluate."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the evaluation; by default eval/BENCHMARK-SPLIT in the model's folder"},
    )
    batch_size: int = field(default=16, metadata={"help": "rows at a time"})
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "score anew what was scored before"})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast import benchmarks
    from gru_fast.cli import options
    from gru_fast.models import ModelOptions

    subparsers = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for module_info in pkgutil.iter_modules(benchmarks.__path__):
        if not module_info.name.endswith(_SUFFIX):
            continue
        name = module_info.name.removesuffix(_SUFFIX)
        benchmark = _benchmark(name)
        subparser = subparsers.add_parser(
            name,
            help=benchmark.HELP,
            description=benchmark.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        options.add(subparser, benchmark.Options, EvalOptions, ModelOptions)
        subparser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
        subparser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from gru_fast import processes
    from gru_fast.cli import options
    from gru_fast.models import ModelOptions

    benchmark = _benchmark(args.benchmark)
    classes = (benchmark.Options, EvalOptions, ModelOptions)
    chosen, how, model = options.resolve(args, *classes, fill=partial(_defaults, benchmark))
    if args.print_config:
        print(options.config_text((chosen, how, model), args), end="")
        return 0
    if not benchmark.needs_model(chosen):
        unused = [options.flag(name) for name in ("model", "output_dir") if name in vars(args)]
        if unused:
            raise ValueError(f"{unused[0]}: numbers of a log are only printed; leave it out (--json > FILE keeps them)")
    with processes.joined(how.device) as (rank, _):
        if rank > 0:
            _be_quiet()
        summary = benchmark.run(chosen, _subject(benchmark, chosen, how, model))
    if rank == 0:
        print(json.dumps(summary, indent=2) if args.json else benchmark.report(summary))
    return 0


def _be_quiet() -> None:
    """Shows no bars and notices of transformers in this process: the first one's speak for all."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _benchmark(name: str) -> Any:
    return import_module(f"gru_fast.benchmarks.{name}{_SUFFIX}")


def _defaults(benchmark: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of the model says of options that were not given."""
    from gru_fast import runs
    from gru_fast.models import find

    if not values.get("model"):
        # Where no model is needed there is none to be named; the name is then not used.
        return {} if benchmark.needs_model(argparse.Namespace(**values)) else {"model": "none"}
    folder = find(values["model"])
    if folder is None:
        return {}
    # A checkpoint-N lies in the folder of its run.
    run_folder = next((path for path in (folder, folder.resolve().parent) if runs.is_run(path)), None)
    if run_folder is None:
        return {}
    config = runs.read_config(run_folder)
    found = {**benchmark.defaults_of_run(config), "template": config.get("template")}
    return {name: value for name, value in found.items() if value is not None}


def _subject(benchmark: Any, chosen: Any, how: EvalOptions, model: ModelOptions) -> Any:
    from gru_fast.benchmarks.scoring import Subject

    return Subject(
        asked=_asked(model),
        output_dir=_output_dir(benchmark, chosen, how, model),
        load=lambda: _load(model, how.device),
        is_older_than=lambda file: _newest(model.model) < file.stat().st_mtime,
        batch_size=how.batch_size,
        overwrite=how.overwrite,
    )


def _asked(model: ModelOptions) -> dict[str, Any]:
    """How a model is asked for, as its evaluation keeps it."""
    return {name: value for name, value in asdict(model).items() if name in _MODEL_FIELDS and value is not None}


def _output_dir(benchmark: Any, chosen: Any, how: EvalOptions, model: ModelOptions) -> Path:
    from gru_fast.models import find

    if how.output_dir is not None:
        return Path(how.output_dir)
    if not benchmark.needs_model(chosen):
        return Path()  # nothing is written
    folder = find(model.model)
    if folder is None or not folder.is_dir():
        raise ValueError(f"output_dir: {model.model} is no folder that could hold its evaluation; give --output-dir")
    return folder / "eval" / benchmark.title(chosen)


def _load(model_options: ModelOptions, device: str | None) -> tuple[Any, Any, Any]:
    from gru_fast.models import check_vocabulary, device_of, load_model, load_template, load_tokenizer

    place = device_of(device)  # its message, before anything is loaded
    tokenizer = load_tokenizer(model_options)
    template = load_template(model_options, tokenizer)
    model = load_model(model_options)
    check_vocabulary(model, tokenizer)
    return model.to(place), tokenizer, template


def _newest(model: str) -> float:
    """When the newest file of a model was written, in seconds since 1970; 0 for one on the hub."""
    from gru_fast.models import find

    found = find(model)
    if found is None:
        return 0.0
    files = [found] if found.is_file() else [file for pattern in _MODEL_FILES for file in found.glob(pattern)]
    return max(file.stat().st_mtime for file in files)
