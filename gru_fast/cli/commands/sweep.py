"""Unlearn on TOFU, or own documents, over a grid of gamma and tau, evaluate every run, and show which is best.

  gru-fast sweep --config tofu-phi-forget05 --model runs/tofu-full --retain-logs runs/tofu-retain95
  gru-fast sweep --config tofu-phi-forget05 ... --objectives ga npo --workers 4 --prune
  gru-fast sweep --config tofu-phi-forget05 ... --address auto --gpus-per-run 1     on all machines of a Ray cluster
  gru-fast sweep --config tofu-phi-forget05 ... --report      the tables of what is done so far

Every run is an ordinary run folder in OUTPUT_DIR/runs, made by gru-fast unlearn and eval with all other options as
given here. Stopped, or killed, the same command goes on. Leaves table.md, results.csv and heat maps. Best is the
highest Forget Quality among the runs that keep --share of the original model's Model Utility; of own documents, the
lowest extraction strength of what is forgotten among those that keep --share of the probability of what is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.evaluation.judge import Judge
    from gru_fast.jobs.driver import Cluster
    from gru_fast.runs.records import Status
    from gru_fast.sweep.draw import Draw
    from gru_fast.sweep.plan import Plan
    from gru_fast.sweep.results import Results

HELP = "unlearning runs over gamma and tau; the best, tables, heat maps"

_INSTEAD = {"gamma": "--gammas", "tau": "--taus"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import gone
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    gone.add(parser)
    sweep, cluster, model, _, config = _classes(None)
    options.add(parser, sweep, cluster, model, commands.data_of_all(), config)
    parser.add_argument("--report", action="store_true", help="write the report of what is done so far, and stop")


def run(args: argparse.Namespace) -> int:
    from gru_fast.cli import EXIT_FAILURE, gone
    from gru_fast.options import flags as options
    from gru_fast.report import figures
    from gru_fast.runs.records import FAILED

    gone.refuse(args)
    figures.require()
    plan, cluster, instances = _plan(args)
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return 0
    status = _status(plan) if args.report else _work(plan, cluster)
    _report(plan.folder, status, plan.options.share, plan.judge)
    return EXIT_FAILURE if any(job.state == FAILED for job in status.values()) else 0


def _work(plan: Plan, cluster: Cluster) -> Mapping[str, Status]:
    """Does what is left to do."""
    from gru_fast.jobs import driver

    plan.check()
    draw = _draw(plan) if plan.options.sampler == "tpe" else None
    with driver.alone(plan.folder):
        plan.check_same()
        plan.write_settings()
        return driver.run(
            plan.folder,
            plan.jobs(),
            _task(plan),
            cluster,
            partial(_outcome, plan.judge),
            draw,
            plan.options.retry_failed,
        )


def _status(plan: Plan) -> Mapping[str, Status]:
    """How the jobs stand; nothing is made or begun."""
    from gru_fast.runs.records import Records
    from gru_fast.sweep.plan import SETTINGS

    plan.check_version()
    if not (plan.folder / SETTINGS).is_dir():
        raise FileNotFoundError(f"{plan.folder}: no sweep in it; leave --report out to begin it")
    plan.check_same()
    return Records(plan.folder).status(plan.jobs())


def _classes(benchmark: ModuleType | None) -> tuple[type, ...]:
    from gru_fast.jobs.driver import Cluster
    from gru_fast.options import commands
    from gru_fast.sweep.options import SweepOptions

    return SweepOptions, Cluster, *commands.unlearn(benchmark)


def _plan(args: argparse.Namespace) -> tuple[Plan, Cluster, Sequence[Any]]:
    """The sweep, where it is done, and the options of its first method.

    The options are resolved once for each method: a config file may have overrides for it.
    """
    from gru_fast.cli import chosen
    from gru_fast.evaluation.judge import JUDGES
    from gru_fast.options import flags as options
    from gru_fast.sweep.plan import Plan

    benchmark = chosen.benchmark(args)
    name_of = benchmark.Options.__dataclass_fields__["benchmark"].default
    if name_of not in JUDGES:
        raise ValueError(f"benchmark: a sweep judges runs on {' or '.join(JUDGES)}, got {name_of}; see gru-fast study")
    classes = _classes(benchmark)
    for name, instead in _INSTEAD.items():
        if name in vars(args):
            raise ValueError(f"{options.flag(name)}: a sweep goes over values of it; give {instead}")
    first = options.resolve(args, *classes, fill=_fill)
    found = {}
    for method in first[0].objectives or [first[-1].method]:
        instances = options.resolve(argparse.Namespace(**{**vars(args), "method": method}), *classes, fill=_fill)
        config = instances[-1]
        config.rectify, config.disable_tqdm = True, True  # a bar is nothing for a log
        found[method] = config
    sweep, cluster, model, data, config = first
    return Plan(Path(config.output_dir), sweep, model, data, found), cluster, first


def _fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what is forgotten."""
    return {"output_dir": f"sweeps/{values['benchmark']}-{values['split']}"}


def _task(plan: Plan) -> Any:
    from gru_fast.cli import parse
    from gru_fast.sweep.trial import SweepTask

    named = {"model": plan.model.model, "tokenizer": plan.model.tokenizer, "revision": plan.model.revision}
    return SweepTask(
        parse=parse,
        folder=plan.folder,
        split=plan.data.split,
        original=tuple(text for name, value in named.items() if value for text in (f"--{name}", value)),
        share=plan.options.share,
        prune=plan.options.prune,
        keep_models=plan.options.keep_models,
        judge=plan.judge,
    )


def _draw(plan: Plan) -> Draw:
    from gru_fast.sweep.draw import Draw

    sweep = plan.options
    taus = [tau for tau in sweep.taus if tau is not None] or [1.0]
    seed = next(iter(plan.configs.values())).seed
    return Draw((sweep.gammas[0], sweep.gammas[-1]), (taus[0], taus[-1]), sweep.share, seed, plan.judge)


def _outcome(judge: Judge, job: Status) -> str:
    """How a run that is done has scored."""
    scores = ((judge.short, job.facts.get(judge.quality)), (judge.utility, job.facts.get(judge.utility)))
    return "  ".join(f"{name} {value:.4f}" for name, value in scores if value is not None)


def _report(folder: Path, status: Mapping[str, Status], share: float, judge: Judge) -> None:
    from gru_fast.report.progress import failures
    from gru_fast.sweep import results

    found = results.collect(status, share, judge)
    files = write(found, folder)
    print(f"\n{results.text(found)}")
    print("".join(f"\n{text}\n" for text in [failures(status)] if text), end="")
    print(f"\nwritten to {folder}: {', '.join(file.name for file in files)}")


def write(found: Results, folder: Path) -> list[Path]:
    """Tables and heat maps in ``folder``; returns the files, of the figures the PNGs."""
    from gru_fast.runs.files import write_text
    from gru_fast.sweep import figures, results

    tables = {"table.md": results.markdown(found), "results.csv": results.comma_separated(found)}
    for name, content in tables.items():
        write_text(folder / name, content)
    return [*(folder / name for name in tables), *figures.write(found, folder)]
