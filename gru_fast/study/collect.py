"""From a queue's jobs and the folders that they have left to results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gru_fast import attacks, benchmarks, runs
from gru_fast.attacks.parts.outcome import SUMMARY_FILE, worst
from gru_fast.runs.records import BLOCKED, FAILED, WAITING, Status
from gru_fast.study import results
from gru_fast.study.plan import Plan, Planned, attacks_of, calibration_of, mixture_of
from gru_fast.study.recipe import Recipe
from gru_fast.study.results import Attacked, Calibrated, Point, Sample, StudyResults, StudyRun
from gru_fast.study.task import MOVED, commands_of

_BOTH_TOPICS = "WMDP Bio, Cyber"  # mean of the two accuracies
_SETS = ("forget", "retain", "real_authors", "world_facts")  # of TOFU, whose records hold what a model has written


def collect(plan: Plan, status: Mapping[str, Status], name: str, title: str, command: str) -> StudyResults:
    """The results so far.

    Args:
        status: of the jobs, by name.
        name, title, command: of the study, see :class:`~gru_fast.study.results.StudyResults`.
    """
    from gru_fast.study.load import to_dict

    recipe = plan.recipe
    module = benchmarks.evaluation(recipe.benchmark)
    return StudyResults(
        name=name,
        title=title,
        benchmark=recipe.benchmark,
        backbone=recipe.backbone,
        splits=list(recipe.splits),
        seeds=recipe.seeds,
        plane=_plane(recipe, module),
        recipe=to_dict(recipe),
        command=command,
        seconds=round(sum(job.seconds or 0.0 for job in status.values()), 1),
        environment=_environment(),
        runs=[_run(plan, planned, status, module) for planned in plan.runs()],
    )


def _run(plan: Plan, planned: Planned, status: Mapping[str, Status], module: Any) -> StudyRun:
    """A run with all that its folder says; of one that is not done, what became of its job."""
    run, job = planned.run, status.get(planned.job)
    if job is None:
        return replace(run, state=WAITING)
    commands = _commands(plan, job)
    run = replace(run, state=job.state, reason=job.reason, log=_relative(job.log, plan.folder), commands=commands)
    for what, name in (("calibration", calibration_of(planned.job)), ("attacks", attacks_of(planned.job))):
        if run.is_done and name in status:
            run = _with_further(run, what, status[name], plan)
    if not run.is_done:
        return run
    folder, evaluation = plan.folder / run.folder, Path(planned.evaluation)
    if not (evaluation / "summary.json").is_file():
        return replace(run, state=FAILED, reason=f"done, but there is no {evaluation / 'summary.json'} any more")
    summary = runs.read_json(evaluation / "summary.json")
    found = runs.read_run(folder) if runs.is_run(folder) else runs.Run(folder, {})
    scores = _scores(plan.recipe, module, summary)
    moved = runs.read_json(folder / MOVED) if (folder / MOVED).is_file() else {}
    return replace(
        run,
        scores=scores,
        summary={name: value for name, value in summary.items() if name != "settings"},
        points=[*_points(folder, found, module, moved), Point(*_end(found), scores, moved.get("end"))]
        if run.kind == results.UNLEARNED
        else [],
        steps=_steps(found.log),
        samples=list(_samples(evaluation, plan.recipe.samples)),
        calibrated=list(_calibrated(folder / "calibration" / "calibration.json", module)),
        attacked=list(attacked(folder, plan.recipe)),
        config=found.config,
        result=found.result or {},
        environment=found.environment,
    )


def _plane(recipe: Recipe, module: Any) -> dict[str, str]:
    """What counts. Of WMDP, the mean over what a split removes: both topics, of "bio-cyber"."""
    if recipe.benchmark != "wmdp" or not all(map(_is_both, recipe.splits)):
        return dict(module.PLANE)
    (retention, kept), (_, removed) = module.PLANE.items()
    return {retention: kept, _BOTH_TOPICS: removed}


def _scores(recipe: Recipe, module: Any, summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a summary by heading."""
    found = dict(module.columns(summary))
    if recipe.benchmark == "wmdp" and all(map(_is_both, recipe.splits)):
        topics = [found[f"WMDP {topic}"] for topic in ("Bio", "Cyber")]
        found[_BOTH_TOPICS] = None if None in topics else sum(topics) / 2
    return found


def _is_both(split: str) -> bool:
    return {"bio", "cyber"} <= {*split.split("-")}


def _with_further(run: StudyRun, what: str, job: Status, plan: Plan) -> StudyRun:
    """The run with the commands of a further job, its calibration or the attacks on it, and why that has failed."""
    run = replace(run, commands=[*run.commands, *_commands(plan, job)])
    if job.state not in {FAILED, BLOCKED}:
        return run
    return replace(run, reason=f"{what}: {job.reason}", log=_relative(job.log, plan.folder))


def _commands(plan: Plan, job: Status) -> list[str]:
    """What was run for a job; of one that is not done, what is to be."""
    return list(job.facts.get("commands") or commands_of(job.spec["steps"], plan.recipe.launch))


def _points(folder: Path, run: runs.Run, module: Any, moved: Mapping[str, float | None]) -> list[Point]:
    """The evaluations of checkpoints, in order."""
    epochs = {row["step"]: float(row["epoch"]) for row in run.log if "step" in row and "epoch" in row}
    found = []
    for file in folder.glob("along/checkpoint-*/summary.json"):
        name = file.parent.name
        step = int(name.rpartition("-")[2])
        scores = dict(module.columns(runs.read_json(file)))
        found.append(Point(round(epochs.get(step, 0.0), 3), step, scores, moved.get(name)))
    return sorted(found, key=lambda point: point.step)


def _end(run: runs.Run) -> tuple[float, int]:
    """Epochs and steps of a finished run."""
    epoch = max((float(row["epoch"]) for row in run.log if "epoch" in row), default=0.0)
    return round(epoch, 3), int((run.result or {}).get("steps", 0))


def _steps(log: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """What was logged in each step, by name; names that never were are left out."""
    rows = [row for row in log if "forget_loss" in row]
    found = {name: [_float(row.get(name)) for row in rows] for name in results.STEP_VALUES}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _float(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if value is not None else None


def _samples(evaluation: Path, count: int) -> Iterator[Sample]:
    """The first questions of each set and what was written; none where a benchmark keeps no such records."""
    for name in _SETS:
        file = evaluation / "records" / f"{name}.jsonl"
        if not file.is_file():
            continue
        rows = sorted(
            map(json.loads, file.read_text(encoding="utf-8").splitlines()), key=lambda row: row.get("index", 0)
        )
        for row in rows[:count]:
            if {"question", "answer", "generation"} <= row.keys():
                yield Sample(name, row["question"], row["answer"], row["generation"])


def _calibrated(file: Path, module: Any) -> Iterator[Calibrated]:
    if not file.is_file():
        return
    for row in runs.read_json(file)["targets"]:
        scores = {name: row[name] for name in row if name not in {"target", "utility_at_least", "alpha"}}
        yield Calibrated(row["target"], row["alpha"], scores)


def attacked(folder: Path, recipe: Recipe) -> Iterator[Attacked]:
    """What came back of a run, then of its mixtures."""
    shares = recipe.attacks.at if recipe.attacks else []
    for share, model in [(None, folder), *((share, Path(mixture_of(str(folder), share))) for share in shares)]:
        for name in attacks.names():
            for file in model.glob(f"attacks/*/{name}/{SUMMARY_FILE}"):
                summary = runs.read_json(file)
                yield Attacked(name, share, worst(summary), worst(summary, "retained_back"))


def _relative(path: str, folder: Path) -> str:
    """A path in the study's folder without that; results are read elsewhere too."""
    return str(Path(path).relative_to(folder)) if path and Path(path).is_relative_to(folder) else path


def _environment() -> dict[str, Any]:
    """Of this process, but for what belongs to a run."""
    return {name: value for name, value in runs.environment().items() if name not in {"command", "started"}}
