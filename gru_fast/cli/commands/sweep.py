"""Unlearn on TOFU over a grid of gamma and tau, evaluate every run, and show which is best.

  gru-fast sweep --config tofu-phi-forget05 --model runs/tofu-full --retain-logs runs/tofu-retain95
  gru-fast sweep --config tofu-phi-forget05 ... --objectives ga npo --workers 4 --prune
  gru-fast sweep --config tofu-phi-forget05 ... --storage postgresql://host/db      on as many machines as there are
  gru-fast sweep --config tofu-phi-forget05 ... --report      the tables of what is done so far

Every run is an ordinary run folder in OUTPUT_DIR/runs, made by gru-fast unlearn and eval with all other options as
given here. Stopped, or killed, the same command goes on; on several machines, with the same options and one storage,
they share the runs. Leaves table.md, results.csv and heat maps. Best is the highest Forget Quality among the runs that
keep --share of the original model's Model Utility.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.jobs.pool import Address
    from gru_fast.jobs.status import Status
    from gru_fast.sweep.plan import Plan
    from gru_fast.sweep.results import Results

HELP = "unlearning runs over gamma and tau; the best, tables, heat maps"

_INSTEAD = {"gamma": "--gammas", "tau": "--taus"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import flags as options

    options.add(parser, *_classes())
    parser.add_argument("--report", action="store_true", help="write the report of what is done so far, and stop")


def run(args: argparse.Namespace) -> int:
    from gru_fast.cli import EXIT_FAILURE
    from gru_fast.jobs.status import FAILED
    from gru_fast.options import flags as options
    from gru_fast.report import figures

    figures.require()
    plan, instances = _plan(args)
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return 0
    status = _status(plan) if args.report else _work(plan)
    _report(plan.folder, status, plan.options.share)
    return EXIT_FAILURE if any(job.state == FAILED for job in status.values()) else 0


def _work(plan: Plan) -> Mapping[str, Status]:
    """Does what is left to do."""
    from gru_fast.jobs import pool
    from gru_fast.jobs.progress import run_shown
    from gru_fast.jobs.storage import check_folder
    from gru_fast.sweep.plan import LOGS

    plan.check()
    if plan.options.storage:
        check_folder(plan.address)
    plan.folder.mkdir(parents=True, exist_ok=True)
    address = _address(plan)
    queue = address.open()
    queue.check(plan.settings())
    plan.write_settings()  # before there are jobs: whoever takes one reads them
    queue.make(plan.settings(), plan.jobs())
    if plan.options.retry_failed:
        queue.retry_failed()
    workers = pool.Workers(_task(plan), plan.folder / LOGS, plan.options.workers, tuple(plan.options.devices or ()))
    return run_shown(address, workers, plan.folder, _outcome)


def _status(plan: Plan) -> Mapping[str, Status]:
    """How the jobs stand; nothing is made or claimed."""
    from gru_fast.sweep.plan import SETTINGS

    queue = _address(plan).open_made() if (plan.folder / SETTINGS).is_dir() else None
    if queue is None:
        raise FileNotFoundError(f"{plan.folder}: no sweep in it; leave --report out to begin it")
    queue.check(plan.settings())
    return queue.status()


def _address(plan: Plan) -> Address:
    from gru_fast.jobs.pool import Address

    return Address(plan.address, plan.options.study, plan.groups, plan.options.patience)


def _classes() -> tuple[type, ...]:
    from gru_fast.options import commands
    from gru_fast.sweep.options import SweepOptions

    return SweepOptions, *commands.unlearn()


def _plan(args: argparse.Namespace) -> tuple[Plan, Sequence[Any]]:
    """The sweep, and the options of its first method.

    The options are resolved once for each method: a config file may have overrides for it.
    """
    from gru_fast.options import flags as options
    from gru_fast.sweep.plan import Plan

    for name, instead in _INSTEAD.items():
        if name in vars(args):
            raise ValueError(f"{options.flag(name)}: a sweep goes over values of it; give {instead}")
    first = options.resolve(args, *_classes(), fill=_fill)
    found = {}
    for method in first[0].objectives or [first[-1].method]:
        instances = options.resolve(argparse.Namespace(**{**vars(args), "method": method}), *_classes(), fill=_fill)
        config = instances[-1]
        config.rectify, config.disable_tqdm = True, True  # a bar is nothing for a log
        found[method] = config
    sweep, model, data, config = first
    return Plan(Path(config.output_dir), sweep, model, data, found), first


def _fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what is forgotten."""
    return {"output_dir": f"sweeps/{values['benchmark']}-{values['split']}"}


def _task(plan: Plan) -> Any:
    from gru_fast.sweep.trial import SweepTask

    named = {"model": plan.model.model, "tokenizer": plan.model.tokenizer, "revision": plan.model.revision}
    sweep = plan.options
    taus = [tau for tau in sweep.taus if tau is not None] or [1.0]
    return SweepTask(
        folder=plan.folder,
        split=plan.data.split,
        original=tuple(text for name, value in named.items() if value for text in (f"--{name}", value)),
        share=sweep.share,
        prune=sweep.prune,
        gammas=(sweep.gammas[0], sweep.gammas[-1]),
        taus=(taus[0], taus[-1]),
        seed=next(iter(plan.configs.values())).seed,
        keep_models=sweep.keep_models,
    )


def _outcome(job: Status) -> str:
    """How a run that is done has scored."""
    from gru_fast.sweep.trial import QUALITY, UTILITY

    scores = (("FQ", job.facts.get(QUALITY)), ("MU", job.facts.get(UTILITY)))
    return "  ".join(f"{name} {value:.4f}" for name, value in scores if value is not None)


def _report(folder: Path, status: Mapping[str, Status], share: float) -> None:
    from gru_fast.jobs.progress import failures
    from gru_fast.sweep import results

    found = results.collect(status, share)
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
