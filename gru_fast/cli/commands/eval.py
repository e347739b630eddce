"""Evaluate a model on a benchmark, or print the numbers of an evaluation that is there.

  gru-fast eval tofu --model RUN --retain-logs RETAINED_RUN
  gru-fast eval tofu --from-logs eval_log_aggregated.json --retain-logs TOFU_EVAL.json
  torchrun --nproc-per-node 8 -m gru_fast.cli eval tofu --model RUN

Scored rows are kept as they come, batch by batch (of WMDP, task by task): a stopped evaluation goes on where it was, a
finished one is only printed. Processes that torchrun or accelerate launch starts share the rows, each with the whole
model on an accelerator of its own; any number of processes goes on with what others have left. The records are those of
one process: losses bit for bit, texts as far as no two tokens are as probable up to rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.models.load import ModelOptions
    from gru_fast.options.commands import EvalOptions

HELP = "score a model on a benchmark; forget quality, model utility"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast import benchmarks
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    subparsers = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name in benchmarks.evaluations():
        benchmark = benchmarks.evaluation(name)
        subparser = subparsers.add_parser(
            name,
            help=benchmark.HELP,
            description=benchmark.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        options.add(subparser, *commands.evaluate(benchmark))
        subparser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
        subparser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from gru_fast import benchmarks
    from gru_fast.cli import evaluating
    from gru_fast.options import commands
    from gru_fast.options import flags as options
    from gru_fast.runs import processes

    benchmark = benchmarks.evaluation(args.benchmark)
    fill = partial(_defaults, benchmark, getattr(args, "load_in_4bit", True))
    chosen, how, model = options.resolve(args, *commands.evaluate(benchmark), fill=fill)
    if args.print_config:
        print(options.config_text((chosen, how, model), args), end="")
        return 0
    if not benchmark.needs_model(chosen):
        _check_unused(benchmark, chosen, [name for name in ("model", "output_dir") if name in vars(args)])
    with processes.joined(how.device) as (rank, _):
        if rank > 0:
            evaluating.be_quiet()
        summary = benchmark.run(chosen, _subject(benchmark, chosen, how, model))
    if rank == 0:
        print(json.dumps(summary, indent=2) if args.json else "\n".join([benchmark.report(summary), *_said(summary)]))
    return 0


def _said(summary: Mapping[str, Any]) -> list[str]:
    """How another backend's texts compare with the model's own."""
    from gru_fast.evaluation.asking import AGREEMENT

    settings = summary.get("settings", {})
    found = settings.get(AGREEMENT)
    if not found:
        return []
    return [f"{settings['backend']} wrote the texts: {found['same']} of {found['compared']} are those of transformers"]


def _defaults(benchmark: Any, is_as_trained: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of the model says of options that were not given; ``is_as_trained``: whether 4 bits are its own."""
    from gru_fast.models.load import config_of, four_bit_of_run, template_of_run

    if not values.get("model"):
        # Where no model is needed there is none to be named; the name is then not used.
        return {} if benchmark.needs_model(argparse.Namespace(**values)) else {"model": "none"}
    config = config_of(values["model"])
    found = {
        **benchmark.defaults_of_run(config),
        **template_of_run(config, values.get("template")),
        **(four_bit_of_run(values["model"]) if is_as_trained else {}),
    }
    return {name: value for name, value in found.items() if value is not None}


def _check_unused(benchmark: Any, chosen: Any, given: list[str]) -> None:
    """Refuses options of a model where there is none, and a folder where nothing is written."""
    from gru_fast.options.flags import flag

    unused = [name for name in given if name == "model" or not _writes(benchmark, chosen)]
    if unused:
        raise ValueError(
            f"{flag(unused[0])}: numbers of a log are only printed; leave it out (--json > FILE keeps them)"
        )


def _writes(benchmark: Any, chosen: Any) -> bool:
    """Whether something is written to an output folder although no model is scored."""
    writes = getattr(benchmark, "writes", None)
    return bool(writes and writes(chosen))


def _subject(benchmark: Any, chosen: Any, how: EvalOptions, model: ModelOptions) -> Any:
    from gru_fast.cli import evaluating
    from gru_fast.evaluation import backends
    from gru_fast.evaluation.subject import Subject

    backend = _backend(benchmark, chosen, how, model)

    def load() -> tuple[Any, Any, Any]:
        if backend is not None:
            backends.check(model)  # else it is said when the other model is in memory
        return evaluating.load(model, how.device)

    return Subject(
        asked=evaluating.asked_for(model) | ({"backend": how.backend} if backend else {}),
        output_dir=_output_dir(benchmark, chosen, how, model),
        load=load,
        is_older_than=lambda file: evaluating.newest(model.model) < file.stat().st_mtime,
        batch_size=how.batch_size,
        overwrite=how.overwrite,
        backend=backend,
    )


def _backend(benchmark: Any, chosen: Any, how: EvalOptions, model: ModelOptions) -> Callable[[Any], Any] | None:
    """What makes another backend than the model itself, if one is asked for."""
    from inspect import signature

    from gru_fast.evaluation import backends
    from gru_fast.runs.processes import here

    if how.backend == backends.TRANSFORMERS:
        return None
    if not benchmark.needs_model(chosen) or "backend" not in signature(benchmark.evaluate).parameters:
        raise ValueError(f"backend: nothing is written there that {how.backend} could write; leave it out")
    if here()[1] > 1:
        raise ValueError(
            f"backend: {how.backend} shares its work out itself; start one process, with --backend-options "
            "tensor_parallel_size=N for N GPUs"
        )

    def make(loaded: Any) -> Any:
        return backends.vllm(model, str(loaded.dtype).removeprefix("torch."), how.backend_options)

    return make


def _output_dir(benchmark: Any, chosen: Any, how: EvalOptions, model: ModelOptions) -> Path:
    from gru_fast.models.load import find

    if how.output_dir is not None:
        return Path(how.output_dir)
    if not benchmark.needs_model(chosen):
        if _writes(benchmark, chosen):
            raise ValueError("output_dir: expected a folder to write the log to, got none; give --output-dir")
        return Path()  # nothing is written
    folder = find(model.model)
    if folder is None or not folder.is_dir():
        raise ValueError(f"output_dir: {model.model} is no folder that could hold its evaluation; give --output-dir")
    return folder / "eval" / benchmark.title(chosen)
