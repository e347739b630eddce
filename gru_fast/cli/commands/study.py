"""Run a paper's worth of unlearning from one recipe: every method plain and with GRU, several seeds, tables, a page.

  gru-fast study tofu-tiny --data ../tofu --workers 2         a small model made here; 45 minutes on two cores
  gru-fast study tofu-phi --workers 4                         the paper's settings, a run on each of four GPUs
  gru-fast study tofu-llama2                                  runs that are each spread over 8 GPUs
  gru-fast study tofu-llama2 --address auto --gpus-per-run 8  on all machines of a Ray cluster
  gru-fast study my.yaml --print-commands                     what would be run, as one would type it
  gru-fast study bench/results/tofu-tiny --report             the report again, from its results.json
  gru-fast study tofu-tiny --check bench/results/tofu-tiny    which numbers of a study on record come out again
  gru-fast study A --join B C --output-dir ALL                studies of one recipe, done apart seed by seed, as one

Trains or takes the original and the retrained model, unlearns with every method of the recipe, evaluates along the way
and at the end, calibrates, and does the recipe's ablation, sensitivity and task vectors. Each is an ordinary run folder
in OUTPUT_DIR. Stopped, or killed, the same command goes on. A run that fails is listed with its log, and the rest goes
on.

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
    from gru_fast.jobs.driver import Cluster
    from gru_fast.runs.records import Job, Status
    from gru_fast.study.plan import Plan
    from gru_fast.study.results import StudyResults

HELP = "every method plain and with GRU, several seeds: tables, figures, a page"

_RECIPE = "recipe.yaml"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class StudyOptions:
    """What is done of a recipe, and where it is kept."""

    output_dir: str | None = _option(None, "folder of the study (default: studies/NAME)")
    data: str | None = _option(None, "instead of the recipe's: the benchmark's files, a hub name or a folder")
    seeds: list[Any] | None = field(default=None, metadata={"help": "instead of the recipe's"})
    splits: list[str] | None = field(default=None, metadata={"help": "of the recipe's, these alone"})
    methods: list[str] | None = field(default=None, metadata={"help": "of the recipe's, these alone"})
    device: str | None = _option(None, "cpu: not on the accelerator, where there is one")
    retry_failed: bool = _option(False, "do failed jobs again")
    keep_models: bool = _option(
        False, "keep the weights of unlearned models; by default they are deleted once evaluated"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import gone
    from gru_fast.jobs.driver import Cluster
    from gru_fast.options import flags as options

    gone.add(parser)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a study: gru-fast ls studies")
    options.add_group(parser, StudyOptions, Cluster)
    parser.add_argument("--print-commands", action="store_true", help="print the commands of every job, and stop")
    parser.add_argument("--report", action="store_true", help="write the report of what is done so far, and stop")
    parser.add_argument(
        "--check",
        metavar="RESULTS",
        help="in the end, or with --report, say which numbers of this results.json, or of that of a folder, have come "
        "out again to the last digit; the exit status is 1 if one has not",
    )
    parser.add_argument(
        "--join",
        nargs="+",
        metavar="RESULTS",
        help="RECIPE is a results.json or the folder of one, as these are, of studies whose recipes differ in seeds, "
        "splits and methods alone: write all of them as one study to --output-dir, and stop",
    )


def run(args: argparse.Namespace) -> int:
    from gru_fast.cli import EXIT_FAILURE, gone
    from gru_fast.jobs.driver import Cluster
    from gru_fast.options import flags as options
    from gru_fast.report import figures
    from gru_fast.runs.records import FAILED
    from gru_fast.study import load, results

    gone.refuse(args)
    how: StudyOptions
    how, cluster = options.resolve(args, StudyOptions, Cluster)
    begun = Path(args.recipe) / _RECIPE
    is_begun = _is_begun(begun) and how.output_dir is None
    on_record = results.read(Path(args.check)) if args.check else None
    if args.join:
        return _join(args, how, on_record)
    if args.report and not is_begun and _results_of(args.recipe) is not None:
        return _report_again(Path(args.recipe), how, on_record, args.check)
    file = begun if is_begun else load.find(args.recipe)
    plan = _plan(file, how, is_dry=args.print_commands or args.report)
    jobs = plan.jobs()
    if args.print_commands:
        _print_commands(jobs, plan.recipe.launch)
        return 0
    figures.require()
    status = _status(plan) if args.report else _work(plan, how, cluster, file)
    found = _report(plan, status, file, args)
    is_same = on_record is None or _checked(found, on_record, args.check)
    return EXIT_FAILURE if any(job.state == FAILED for job in status.values()) or not is_same else 0


def _checked(found: StudyResults, on_record: StudyResults, name: str) -> bool:
    """Says which numbers have come out again; whether all have."""
    from gru_fast.study import check

    outcome = check.compare(found, on_record)
    print("\n" + "\n".join(check.said(outcome, name)))
    return outcome.is_same


def _is_begun(recipe: Path) -> bool:
    """Whether a recipe is the one that a study has kept: its jobs are beside it."""
    from gru_fast.runs.records import RECORDS

    return recipe.is_file() and (recipe.parent / RECORDS).is_dir()


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
    folder = file.parent if file.name == _RECIPE and _is_begun(file) else Path(f"studies/{file.stem}")
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


def _work(plan: Plan, how: StudyOptions, cluster: Cluster, file: Path) -> Mapping[str, Status]:
    from gru_fast.cli import parse
    from gru_fast.jobs import driver
    from gru_fast.study import load
    from gru_fast.study.task import StudyTask

    _check_folder(plan.folder)
    _check_launchers(plan)
    task = StudyTask(parse, plan.recipe.launch)
    outcome = partial(_outcome, plan)
    with driver.alone(plan.folder):
        _check_jobs(plan)
        _check_launch(plan)
        _keep_recipe(plan, load.title(file))
        return driver.run(plan.folder, _in_order(plan), task, cluster, outcome, retry_failed=how.retry_failed)


def _in_order(plan: Plan) -> list[Job]:
    return [job for group in plan.jobs().values() for job in group]


def _check_folder(folder: Path) -> None:
    """Refuses a folder with something else in it, before anything is written."""
    from gru_fast.jobs.driver import is_free

    if not (folder / _RECIPE).is_file() and not is_free(folder):
        raise FileExistsError(f"output folder {folder} is not empty, and no study made it; choose another")
    if (folder / "jobs.journal").exists():
        raise FileExistsError(
            f"{folder}/jobs.journal is of gru_fast 0.1, which kept its jobs there: delete it and start the same "
            "command again, which finds what is whole in the folder and does the rest"
        )


def _check_launchers(plan: Plan) -> None:
    for name, line in plan.recipe.launch.items():
        program = shlex.split(line)[0]
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"launch: {name}: no program {program} on PATH; activate its environment, or name its file"
            )


def _check_launch(plan: Plan) -> None:
    """Refuses other launchers than those the study was begun with: by the number of their processes the rows of a step
    differ.
    """
    from gru_fast.runs.files import differences
    from gru_fast.study import load

    kept = plan.folder / _RECIPE
    changed = differences(load.read(kept).launch, plan.recipe.launch, "launch") if _is_begun(kept) else []
    if changed:
        raise ValueError(
            f"{plan.folder}: it was begun with {changed[0]}; give another --output-dir, or, if the number of processes "
            f"is the same, write the new line into {kept} too"
        )


def _keep_recipe(plan: Plan, title: str) -> None:
    """The recipe as it is used, for ``gru-fast study OUTPUT_DIR/recipe.yaml``."""
    from gru_fast.study import load

    plan.folder.mkdir(parents=True, exist_ok=True)
    _write_recipe(plan.folder, load.to_dict(plan.recipe), title)


def _write_recipe(folder: Path, content: Mapping[str, Any], title: str) -> None:
    import yaml

    from gru_fast.runs.files import write_text

    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(folder / _RECIPE, f"# {title}\n{text}")


def _check_jobs(plan: Plan) -> None:
    """Refuses a folder whose jobs were made with other options, or that holds more than the recipe: a report must show
    all that was run. More seeds and methods are jobs of their own, and may come later.
    """
    from gru_fast.runs.files import differences
    from gru_fast.runs.records import Records
    from gru_fast.study.task import settings_of

    wanted = {job.name: job for job in _in_order(plan)}
    records = Records(plan.folder)
    made = {name: record for name in records.names() if (record := records.read(name)) is not None}
    for name, record in made.items():
        if name not in wanted:
            raise ValueError(
                f"{plan.folder}: it holds {name}, which this recipe leaves out. A study can grow, not shrink: give "
                "what it was begun with as well, or another --output-dir"
            )
        changed = differences(settings_of(record["spec"]["steps"]), settings_of(wanted[name].spec["steps"]))
        if changed:
            raise ValueError(f"{plan.folder}: {name} was made with {changed[0]}; give another --output-dir")
    for name, new in wanted.items():
        run = None if name in made else _further_on(new.spec["steps"])
        of = {"do": "delete", "run": run}
        if run is not None and any(
            of in made[each]["spec"]["steps"] and records.is_over(each) for each in new.needs if each in made
        ):
            raise ValueError(
                f"{plan.folder}: {name} needs the weights of {run}, which its own job deletes when it has evaluated "
                "them; give another --output-dir, or begin with --keep-models what calibration may be added to"
            )


def _further_on(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The run that a job calibrates or attacks; None if it does something else."""
    argv = steps[0].get("argv", [""])
    return str(argv[argv.index("--model") + 1]) if argv[0] in {"calibrate", "attack"} else None


def _status(plan: Plan) -> Mapping[str, Status]:
    from gru_fast.runs.records import Records

    if not _is_begun(plan.folder / _RECIPE):
        raise FileNotFoundError(f"{plan.folder}: no study in it; leave --report out to begin it")
    _check_jobs(plan)
    return Records(plan.folder).status(_in_order(plan))


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


def _join(args: argparse.Namespace, how: StudyOptions, on_record: StudyResults | None) -> int:
    """Several studies as one, in a folder of its own."""
    from gru_fast.cli import EXIT_FAILURE
    from gru_fast.report import figures
    from gru_fast.study import join, report, results, verdict

    if args.report or args.print_commands:
        raise ValueError("--join writes a report and runs nothing: leave --report and --print-commands out")
    if how.output_dir is None:
        raise ValueError("--join: expected --output-dir, where the joined study is written")
    folder = Path(how.output_dir)
    if _is_begun(folder / _RECIPE):
        raise FileExistsError(f"{folder}: a study with jobs of its own; give another --output-dir")
    _check_folder(folder)
    figures.require()
    studies = {}
    for given in dict.fromkeys([args.recipe, *args.join]):
        if _results_of(given) is None:
            raise FileNotFoundError(
                f"{given}: no {results.FILE} there; gru-fast study {given} --report writes that of a study"
            )
        studies[given] = results.read(Path(given))
    found = join.join(studies, folder.resolve().name)
    folder.mkdir(parents=True, exist_ok=True)
    _write_recipe(folder, found.recipe, found.title)
    results.write(found, folder)
    report.write(found, folder)
    print("\n".join([verdict.headline(found), f"written to {folder}"]))
    return 0 if on_record is None or _checked(found, on_record, args.check) else EXIT_FAILURE


def _report_again(given: Path, how: StudyOptions, on_record: StudyResults | None, name: str) -> int:
    """The report of results that are there, without a queue or a run folder."""
    from gru_fast.cli import EXIT_FAILURE
    from gru_fast.study import report, results, verdict

    found = results.read(given)
    folder = Path(how.output_dir) if how.output_dir else (given if given.is_dir() else given.parent)
    report.write(found, folder)
    print("\n".join([verdict.headline(found), f"written to {folder}"]))
    return 0 if on_record is None or _checked(found, on_record, name) else EXIT_FAILURE


def _report(plan: Plan, status: Mapping[str, Status], file: Path, args: argparse.Namespace) -> StudyResults:
    from gru_fast.report.progress import failures
    from gru_fast.study import collect, load, report, results, verdict

    command = shlex.join(["gru-fast", *sys.argv[1:]])
    found = collect.collect(plan, status, plan.folder.name, load.title(file), command.replace(" --report", ""))
    written = [results.write(found, plan.folder), *report.write(found, plan.folder)]
    said = [verdict.headline(found), *(f"  {line}" for line in verdict.sentences(found))]
    print("\n" + "\n".join(said))
    print("".join(f"\n{text}\n" for text in [failures(status)] if text), end="")
    print(f"\nwritten to {plan.folder}: {', '.join(path.name for path in written if path.parent == plan.folder)}, ...")
    return found
