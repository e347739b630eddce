"""Run a paper's worth of unlearning from one recipe: every method plain and with GRU, several seeds, tables, a page.

  gru-fast study tofu-tiny --data ../tofu --workers 2         a small model made here; 45 minutes on two cores
  gru-fast study tofu-phi --devices 0 1 2 3 --workers 4       the paper's settings, a run on each GPU
  gru-fast study tofu-llama2                                  runs that are each spread over 8 GPUs
  gru-fast study my.yaml --print-commands                     what would be run, as one would type it
  gru-fast study bench/results/tofu-tiny --report             the report again, from its results.json

Trains or takes the original and the retrained model, unlearns with every method of the recipe, evaluates along the way
and at the end, calibrates, and does the recipe's ablation, sensitivity and task vectors. Each is an ordinary run folder
in OUTPUT_DIR. Stopped, or killed, the same command goes on; on several machines that share OUTPUT_DIR, the same command
shares the work. A run that fails is listed with its log, and the rest goes on.

Leaves results.json, report.html, report.md, tables/ (Markdown, LaTeX, CSV) and figures/ (PNG, SVG).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.jobs.pool import Address
    from gru_fast.jobs.status import Status
    from gru_fast.study.plan import Plan

HELP = "every method plain and with GRU, several seeds: tables, figures, a page"

_JOURNAL = "jobs.journal"
_RECIPE = "recipe.yaml"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class StudyOptions:
    """What is done of a recipe, where, and by how many."""

    output_dir: str | None = _option(None, "folder of the study (default: studies/NAME)")
    data: str | None = _option(None, "instead of the recipe's: the benchmark's files, a hub name or a folder")
    seeds: list[Any] | None = field(default=None, metadata={"help": "instead of the recipe's"})
    splits: list[str] | None = field(default=None, metadata={"help": "of the recipe's, these alone"})
    methods: list[str] | None = field(default=None, metadata={"help": "of the recipe's, these alone"})
    device: str | None = _option(None, "cpu: not on the accelerator, where there is one")
    workers: int = _option(1, "jobs at a time on this machine")
    devices: list[str] | None = field(
        default=None,
        metadata={
            "help": "CUDA devices that the workers take turns on, as in CUDA_VISIBLE_DEVICES; by default all. With a "
            "recipe that has launch, a group for each worker: 0+1+2+3 4+5+6+7"
        },
    )
    storage: str | None = _option(
        None,
        "where the jobs are kept: a database's URL as Optuna takes it, or the path of a journal file; by default "
        f"{_JOURNAL} in --output-dir, which machines with a common folder share",
    )
    study: str = _option("study", "name of the study in --storage, which may hold several")
    patience: float = _option(60.0, "seconds without a sign of life until another machine's job is taken over")
    retry_failed: bool = _option(False, "do failed jobs again")
    keep_models: bool = _option(
        False, "keep the weights of unlearned models; by default they are deleted once evaluated"
    )

    def __post_init__(self) -> None:
        from gru_fast.jobs.worker import problems_of_patience

        problems = problems_of_patience(self.patience)
        if self.workers < 1:
            problems.append(f"workers: expected a whole number of at least 1, got {self.workers}")
        if not self.study or "/" in self.study:
            problems.append(f'study: expected a name without "/", got "{self.study}"')
        if problems:
            raise ValueError("; ".join(problems))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import flags as options

    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a study: gru-fast ls studies")
    options.add_group(parser, StudyOptions)
    parser.add_argument("--print-commands", action="store_true", help="print the commands of every job, and stop")
    parser.add_argument("--report", action="store_true", help="write the report of what is done so far, and stop")


def run(args: argparse.Namespace) -> int:
    from gru_fast.cli import EXIT_FAILURE
    from gru_fast.jobs.status import FAILED
    from gru_fast.options import flags as options
    from gru_fast.report import figures
    from gru_fast.study import load

    how: StudyOptions = options.resolve(args, StudyOptions)[0]
    begun = Path(args.recipe) / _RECIPE
    is_begun = begun.with_name(_JOURNAL).is_file() and how.output_dir is None
    if args.report and not is_begun and _results_of(args.recipe) is not None:
        return _report_again(Path(args.recipe), how)
    file = begun if is_begun else load.find(args.recipe)
    plan = _plan(file, how, is_dry=args.print_commands or args.report)
    jobs = plan.jobs()
    if args.print_commands:
        _print_commands(jobs, plan.recipe.launch)
        return 0
    figures.require()
    status = _status(plan, how) if args.report else _work(plan, how, file)
    _report(plan, status, file, args)
    return EXIT_FAILURE if any(job.state == FAILED for job in status.values()) else 0


def _plan(file: Path, how: StudyOptions, *, is_dry: bool) -> Plan:
    from gru_fast.study import load
    from gru_fast.study.plan import Plan
    from gru_fast.study.recipe import PARTS

    read = load.read(file)
    changed = {name: value for name in ("data", "device") if (value := getattr(how, name)) is not None}
    content = load.to_dict(read) | changed
    methods = _chosen(read.methods, how.methods, "methods", file)
    splits = _chosen(read.splits, how.splits, "splits", file)
    found = load.only(content, methods, splits, _seeds(how.seeds) if how.seeds else read.seeds)
    for part in PARTS:
        if getattr(read, part) is not None and getattr(found, part) is None:
            print(
                f"{part}: left out, since {file} has it for methods, splits or seeds that are not chosen",
                file=sys.stderr,
            )
    # The recipe that a study has kept is of that study.
    folder = file.parent if (file.parent / _JOURNAL).is_file() else Path(f"studies/{file.stem}")
    return Plan(found, Path(how.output_dir or folder), how.keep_models, is_dry)


def _seeds(given: Sequence[Any]) -> list[int]:
    from gru_fast.options.coerce import coerce

    try:
        return [coerce(seed, int, {}) for seed in given]
    except ValueError as error:
        raise ValueError(f"seeds: {error}") from None


def _chosen(there: Mapping[str, Any], wanted: Sequence[str] | None, name: str, file: Path) -> list[str]:
    """The names of ``there`` that are wanted."""
    from gru_fast.options.coerce import nearest

    for text in wanted or ():
        if text not in there:
            raise ValueError(f'{name}: {file} has no "{text}"{nearest(text, list(there))}; it has {", ".join(there)}')
    return list(wanted or there)


def _print_commands(jobs: Mapping[str, Any], launch: Mapping[str, str]) -> None:
    from gru_fast.study.task import commands_of

    for group in jobs.values():
        for job in group:
            print("\n".join([f"# {job.name}", *commands_of(job.spec["steps"], launch), ""]))


# ---- the work --------------------------------------------------------------------------------------------------------


def _address(plan: Plan, how: StudyOptions) -> Address:
    from gru_fast.jobs.pool import Address

    return Address(how.storage or str(plan.folder / _JOURNAL), how.study, plan.groups, how.patience)


def _work(plan: Plan, how: StudyOptions, file: Path) -> Mapping[str, Status]:
    from gru_fast.jobs import pool
    from gru_fast.jobs.progress import run_shown
    from gru_fast.jobs.storage import check_folder
    from gru_fast.study import load
    from gru_fast.study.plan import LOGS
    from gru_fast.study.task import StudyTask

    _check_folder(plan.folder)
    _check_launchers(plan)
    devices = _devices(plan, how)
    if how.storage:
        check_folder(how.storage)
    address = _address(plan, how)
    made = address.open_made()
    if made is not None:
        _check_jobs(plan, how, made.status())
    _keep_recipe(plan, load.title(file))
    queue = made or address.open()
    queue.make({group: {} for group in plan.groups}, plan.jobs())
    if how.retry_failed:
        queue.retry_failed()
    workers = pool.Workers(StudyTask(plan.recipe.launch), plan.folder / LOGS, how.workers, devices)
    return run_shown(address, workers, plan.folder, partial(_outcome, plan))


def _check_folder(folder: Path) -> None:
    """Refuses a folder with something else in it, before anything is written."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _RECIPE).is_file())):
        raise FileExistsError(f"output folder {folder} is not empty, and no study made it; choose another")


def _check_launchers(plan: Plan) -> None:
    for name, line in plan.recipe.launch.items():
        program = shlex.split(line)[0]
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"launch: {name}: no program {program} on PATH; activate its environment, or name its file"
            )


def _devices(plan: Plan, how: StudyOptions) -> tuple[str, ...]:
    """What each worker computes on: a GPU, or a group of them where commands are launched. Empty: as it finds them."""
    from gru_fast.jobs import pool

    given = tuple(group.replace("+", ",") for group in how.devices or ())
    if not plan.recipe.launch:
        if any("," in group for group in given):
            raise ValueError("devices: expected one GPU for a worker, got a group; groups are for a recipe with launch")
        return given
    if how.workers == 1:
        group = ",".join(given or pool.visible_devices())
        return (group,) if group else ()
    if len(given) < how.workers:
        raise ValueError(
            f"workers: what {how.workers} of them launch would share GPUs; give --devices a group for each, e.g. "
            "0+1+2+3 4+5+6+7, or --workers 1"
        )
    return given


def _keep_recipe(plan: Plan, title: str) -> None:
    """The recipe as it is used, for ``gru-fast study OUTPUT_DIR/recipe.yaml``."""
    import yaml

    from gru_fast.runs.files import write_text
    from gru_fast.study import load

    plan.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(load.to_dict(plan.recipe), sort_keys=False, allow_unicode=True)
    write_text(plan.folder / _RECIPE, f"# {title}\n{text}")


def _check_jobs(plan: Plan, how: StudyOptions, status: Mapping[str, Status]) -> None:
    """Refuses a folder whose jobs were made with other options, or that holds more than the recipe: a report must show
    all that was run. More seeds and methods are jobs of their own, and may come later.
    """
    from gru_fast.jobs.queue import differences
    from gru_fast.study.task import settings_of

    instead = "give another --output-dir" + (" and --study" if how.storage else "")
    wanted = {job.name: job for jobs in plan.jobs().values() for job in jobs}
    for name, job in status.items():
        if name not in wanted:
            raise ValueError(
                f"{plan.folder}: it holds {name}, which this recipe leaves out. A study can grow, not shrink: give "
                f"what it was begun with as well, or {instead.removeprefix('give ')}"
            )
        changed = differences(settings_of(job.spec["steps"]), settings_of(wanted[name].spec["steps"]))
        if changed:
            raise ValueError(f"{plan.folder}: {name} was made with {changed[0]}; {instead}")
    for name, new in wanted.items():
        run = None if name in status else _calibrated_run(new.spec["steps"])
        of = {"do": "delete", "run": run}
        if run is not None and any(of in status[each].spec["steps"] for each in new.needs if each in status):
            raise ValueError(
                f"{plan.folder}: {name} needs the weights of {run}, which its own job deletes when it has evaluated "
                f"them; {instead}, or begin with --keep-models what calibration may be added to"
            )


def _calibrated_run(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The run that a job calibrates; None if it does something else."""
    argv = steps[0].get("argv", [""])
    return str(argv[argv.index("--model") + 1]) if argv[0] == "calibrate" else None


def _status(plan: Plan, how: StudyOptions) -> Mapping[str, Status]:
    queue = _address(plan, how).open_made()
    if queue is None:
        raise FileNotFoundError(f"{plan.folder}: no study in it; leave --report out to begin it")
    status = queue.status()
    _check_jobs(plan, how, status)
    return status


def _outcome(plan: Plan, job: Status) -> str:
    """How a job that is done has scored: retention and removal of its last run."""
    from gru_fast import benchmarks
    from gru_fast.runs.files import read_json

    module = benchmarks.evaluation(plan.recipe.benchmark)
    files = [Path(planned.evaluation) / "summary.json" for planned in plan.runs() if planned.job == job.name]
    if not files or not files[-1].is_file():
        return ""
    scores = module.columns(read_json(files[-1]))
    shown = [(name.partition(" ")[0] if "(" in name else name, scores.get(name)) for name in reversed(module.PLANE)]
    return "  ".join(f"{name} {value:.4f}" for name, value in shown if value is not None)


# ---- the report ------------------------------------------------------------------------------------------------------


def _results_of(recipe: str) -> Path | None:
    """The results.json that was given in the place of a recipe: itself, or its folder."""
    from gru_fast.study import results

    path = Path(recipe)
    found = path / results.FILE if path.is_dir() else path
    return found if found.name == results.FILE and found.is_file() else None


def _report_again(given: Path, how: StudyOptions) -> int:
    """The report of results that are there, without a queue or a run folder."""
    from gru_fast.study import report, results, verdict

    found = results.read(given)
    folder = Path(how.output_dir) if how.output_dir else (given if given.is_dir() else given.parent)
    report.write(found, folder)
    print("\n".join([verdict.headline(found), f"written to {folder}"]))
    return 0


def _report(plan: Plan, status: Mapping[str, Status], file: Path, args: argparse.Namespace) -> None:
    from gru_fast.jobs.progress import failures
    from gru_fast.study import collect, load, report, results, verdict

    command = shlex.join(["gru-fast", *sys.argv[1:]])
    found = collect.collect(plan, status, plan.folder.name, load.title(file), command.replace(" --report", ""))
    written = [results.write(found, plan.folder), *report.write(found, plan.folder)]
    said = [verdict.headline(found), *(f"  {line}" for line in verdict.sentences(found))]
    print("\n" + "\n".join(said))
    print("".join(f"\n{text}\n" for text in [failures(status)] if text), end="")
    print(f"\nwritten to {plan.folder}: {', '.join(path.name for path in written if path.parent == plan.folder)}, ...")
