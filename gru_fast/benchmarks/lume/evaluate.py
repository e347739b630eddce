"""Evaluation on LUME (SemEval-2025 task 4): is it repeated, is it known, can it be told that it was trained on?

  gru-fast eval lume --model RUN --data lume/data
  gru-fast eval lume --model RUN --data lume/data --mia-data semeval/mia_data --mmlu 0.47

Of each of three tasks, of what was to be forgotten and of what was to be kept: ROUGE-L recall of how a text goes on,
and the share of questions answered to the letter; their harmonic mean, with 1 - x of what was to be forgotten, is the
task aggregate. With --mia-data comes the MIA score, and with --mmlu, the accuracy that `gru-fast eval wmdp --tasks
mmlu` finds, the final score: the mean of the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.lume.records import (
    MEMBERS,
    Question,
    check,
    content,
    load_members,
    questions,
    score_members,
    score_questions,
)
from gru_fast.benchmarks.lume.rows import HUB, SPLITS, LumeOptions, load, split_problem
from gru_fast.benchmarks.lume.rows import title as title_of
from gru_fast.data.rows import read_json_rows
from gru_fast.data.sequences import Encoded
from gru_fast.evaluation.asking import Scorer, score_rows
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.record_folder import RowSet
from gru_fast.evaluation.subject import Subject, check_whole
from gru_fast.evaluation.summaries import SUMMARY_FILE, settings_before
from gru_fast.metrics import lume as metrics
from gru_fast.metrics import mia
from gru_fast.metrics import quick as look
from gru_fast.metrics.lume import FORGET, RETAIN
from gru_fast.metrics.rouge import warn_of_dropped
from gru_fast.models.forward import Autocast
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "regurgitation, knowledge, membership and the final score of SemEval-2025 task 4, on LUME"
NEW_TOKENS = 256
LEAST_MMLU = 0.371  # of the 7B model: below it a submission was not ranked


@dataclass
class LumeEvalOptions:
    """What `gru-fast eval lume` can be asked."""

    data: str | None = field(
        default=None,
        metadata={"help": f"LUME on the hub ({HUB}), or a folder with forget.jsonl and retain.jsonl; as in the run"},
    )
    split: str = field(default=SPLITS[0], metadata={"help": f"{' or '.join(SPLITS)}; by default as in the run"})
    mia_data: str | None = field(
        default=None, metadata={"help": "a folder with member.jsonl and nonmember.jsonl, for the MIA score"}
    )
    mmlu: float | None = field(
        default=None, metadata={"help": "the model's accuracy on MMLU, 0 to 1, for the final score"}
    )
    max_rows: int = field(default=0, metadata={"help": "the first rows of each set; 0 for all"})
    quick: bool = look.option()
    max_new_tokens: int = field(default=NEW_TOKENS, metadata={"help": "most tokens that the model writes"})

    def __post_init__(self) -> None:
        problems = [split_problem(self.split)] if split_problem(self.split) else []
        for name, least in (("max_rows", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                problems.append(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.mmlu is not None and not 0 <= self.mmlu <= 1:
            problems.append(f"mmlu: expected an accuracy from 0 to 1, got {self.mmlu}")
        if problems:
            raise ValueError("; ".join(problems))


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = LumeEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says of the options, if it was on LUME."""
    if config.get("benchmark") != "lume":
        return {}
    return {name: config[name] for name in ("data", "split") if config.get(name)}


def needs_model(options: LumeEvalOptions) -> bool:
    """Always; what is finished is printed without loading it."""
    return True


def title(options: LumeEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    return title_of(LumeOptions(split=options.split)) + (look.SUFFIX if options.quick else "")


def run(options: LumeEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a finished evaluation, or of one that is done now."""
    again = partial(resummarize, subject.output_dir, options.mmlu)

    def done(model: Any, tokenizer: Any, template: Any, **how: Any) -> dict[str, Any]:
        return evaluate(model, tokenizer, subject.output_dir, **_how(options), mmlu=options.mmlu, **how)

    return subject.evaluated(wanted(options, subject.asked), again, done)


def wanted(options: LumeEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    found = {**_how(options), "quick": options.quick or None, "model_options": asked}
    return found if options.mia_data is not None else {key: found[key] for key in found if key != "mia_data"}


def _how(options: LumeEvalOptions) -> dict[str, Any]:
    return {
        "data": options.data or HUB,
        "split": options.split,
        "mia_data": options.mia_data,
        "max_rows": options.max_rows or None,
        "max_new_tokens": options.max_new_tokens,
        "quick": options.quick,
    }


PLANE = {
    "retain knowledge": "what is kept, higher is better",
    "forget regurgitation": "what is left of it, lower is better",
}
KNOWLEDGE = ("forget regurgitation", "forget knowledge")


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    parts = summary.get("scores") or {}
    found = {
        f"{part} {kind}": parts.get(part, {}).get("all", {}).get(kind)
        for part in (FORGET, RETAIN)
        for kind in metrics.KINDS.values()
    }
    rest = {"task aggregate": "task_aggregate", "MIA score": "mia_score", "final score": "final_score"}
    return {**found, **{heading: summary.get(name) for heading, name in rest.items()}}


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    lines = [f"LUME: {', '.join(f'{count} {name}' for name, count in summary['num_rows'].items())} rows"]
    kinds = list(metrics.KINDS.values())
    lines.append(f"{'':<16}" + "".join(f"{kind:>16}" for kind in kinds))
    for part, tasks in summary["scores"].items():
        for task, scores in tasks.items():
            lines.append(f"{part + ' ' + task:<16}" + "".join(_number(scores.get(kind)) for kind in kinds))
    lines.append(f"{'Task aggregate':<16}{_number(summary['task_aggregate'])}")
    of_members = _hint(summary["mia_score"], "--mia-data")
    lines.append(f"{'MIA score':<16}{_number(summary['mia_score'])}{of_members}")
    lines.append(f"{'MMLU':<16}{_number(summary['mmlu'])}" + _hint(summary["mmlu"], "--mmlu"))
    lines.append(f"{'Final score':<16}{_number(summary['final_score'])}")
    if summary["mmlu"] is not None and summary["mmlu"] < LEAST_MMLU:
        lines.append(f"MMLU is below {LEAST_MMLU}, where the task did not rank 7B models")
    return "\n".join([*lines, *look.report(summary)])


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>16}"


def _hint(value: float | None, option: str) -> str:
    return "" if value is not None else f"  (give {option})"


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    data: str | Path = HUB,
    split: str = SPLITS[0],
    mia_data: str | Path | None = None,
    mmlu: float | None = None,
    max_rows: int | None = None,
    max_new_tokens: int = NEW_TOKENS,
    quick: bool = False,
    batch_size: int = 16,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores ``model`` on what was to be forgotten and kept; writes and returns the summary.

    ``output_dir`` then holds ``records/SET.jsonl``, one line a row, and ``summary.json``. Finished rows are kept as
    they come: called again, it goes on where it was stopped. Where ``torch.distributed`` is initialised, the processes
    share the rows.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        data, split: see :func:`gru_fast.benchmarks.lume.load`.
        mia_data: see :func:`gru_fast.benchmarks.lume.records.load_members`; None: no MIA score, nor final score, if
            these texts were not scored before.
        mmlu: accuracy on MMLU, 0 to 1; None: no final score.
        max_rows: the first rows of each set; None: all.
        max_new_tokens: that the model writes at most.
        quick: every third of those rows, see :mod:`gru_fast.metrics.quick`; the summary then has ``intervals``.
        backend: writes texts in place of the model, see :mod:`gru_fast.evaluation.backends`.
        overwrite: score anew even if there are records, of these or of other settings.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        FileNotFoundError, ValueError: no such data; records of another model or other settings in ``output_dir``; a row
            that the model cannot read. RuntimeError: NaN or Inf from the model.
    """
    check_whole(model)
    output_dir, limits = Path(output_dir), limits_of(model)
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size, autocast, backend)
    before: dict[str, Any] = {} if overwrite else on_first(partial(settings_before, output_dir))
    every = look.step(quick)
    asked = {
        part: questions(tokenizer, load(part, data, split)[:max_rows][::every], max_new_tokens)
        for part in (FORGET, RETAIN)
    }
    texts = {} if mia_data is None else load_members(tokenizer, mia_data, max_rows)
    texts = {name: found[::every] for name, found in texts.items()}
    for name, rows in asked.items():
        check(limits, name, rows)
        warn_of_dropped([question.row["output"] for question in rows], name)
    for name, found in texts.items():
        limits.check_rows(name, found, option=None)
    sets: dict[str, Sequence[Question] | Sequence[Encoded]] = {**asked, **texts}
    settings: dict[str, Any] = {
        "split": split,
        "max_rows": max_rows,
        "max_new_tokens": max_new_tokens,
        **look.setting(quick),
        "rows": {name: content(rows) for name, rows in sets.items()},
    }
    how: dict[str, Any] = {"progress": progress, "overwrite": overwrite, "model_options": model_options}
    seconds, settings = score_rows(scorer, _sets(scorer, asked, texts, every), output_dir, settings, data=data, **how)
    settings["mia_data"] = before.get("mia_data") if mia_data is None else str(mia_data)
    settings["rows"] = {**before.get("rows", {}), **settings["rows"]}
    return on_first(lambda: _finish(output_dir, mmlu, seconds, settings))


def _sets(
    scorer: Scorer, asked: Mapping[str, Sequence[Question]], texts: Mapping[str, Sequence[Encoded]], every: int
) -> list[RowSet]:
    members = partial(score_members, scorer)
    return [
        *(
            RowSet(name, rows, score_questions, [len(row.prompt.ids) for row in rows], every=every)
            for name, rows in asked.items()
        ),
        *(
            RowSet(name, rows, members, [len(row["input_ids"]) for row in rows], every=every)
            for name, rows in texts.items()
        ),
    ]


def resummarize(output_dir: str | Path, mmlu: float | None = None) -> dict[str, Any]:
    """The summary of a finished evaluation, from its records: no model. ``mmlu`` None: what was given before."""
    before = read_json(Path(output_dir) / SUMMARY_FILE)
    return _finish(Path(output_dir), before["mmlu"] if mmlu is None else mmlu, before["seconds"], before["settings"])


def _finish(output_dir: Path, mmlu: float | None, seconds: float | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the summary. Numbers come from the records on disk: gone on with or unbroken, they are the same."""
    records = {name: read_json_rows(output_dir / "records" / f"{name}.jsonl") for name in settings["rows"]}
    scores = {part: metrics.by_task(records[part]) for part in (FORGET, RETAIN)}
    aggregate = metrics.task_aggregate(scores[FORGET], scores[RETAIN])
    auc = metrics.mia_auc(*(records[name] for name in MEMBERS)) if MEMBERS[0] in records else None
    mia = None if auc is None else metrics.mia_score(auc)
    summary = {
        "benchmark": "lume",
        "split": settings["split"],
        "scores": scores,
        "task_aggregate": aggregate,
        "mia_auc": auc,
        "mia_score": mia,
        "mmlu": mmlu,
        "final_score": metrics.final_score(aggregate, mia, mmlu),
        **({"intervals": _intervals(records)} if settings.get("quick") else {}),
        "num_rows": {name: len(rows) for name, rows in records.items()},
        "seconds": seconds,
        "settings": dict(settings),
    }
    write_json(output_dir / SUMMARY_FILE, summary)
    return summary


def _intervals(records: Mapping[str, Sequence[metrics.Record]]) -> dict[str, list[float]]:
    """Of the columns of a report, the final score aside."""
    tasks = sorted({row["task"] for part in (FORGET, RETAIN) for row in records[part]})
    kinds = [(task, kind) for task in tasks for kind in metrics.KINDS.values()]
    names = [f"{task} {kind}" for task, kind in kinds]
    tables = {
        part: look.table([{f"{row['task']} {row['kind']}": metrics.score(row)} for row in records[part]], names)
        for part in (FORGET, RETAIN)
    }
    losses = {name: look.table(records[name], ["loss"]) for name in MEMBERS if name in records}

    def scores(drawn: Mapping[str, look.Floats]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        of_tasks = {}
        for part in (FORGET, RETAIN):
            for kind in metrics.KINDS.values():
                of_kind = [place for place, (_, each) in enumerate(kinds) if each == kind]
                found[f"{part} {kind}"] = look.means(drawn[part][:, of_kind].reshape(-1, 1))[0]
            means = zip(names, look.means(drawn[part]), strict=True)
            of_tasks[part] = {name: {name: mean} for name, mean in means if mean is not None}
        found["task aggregate"] = metrics.task_aggregate(of_tasks[FORGET], of_tasks[RETAIN])
        if losses:
            auc = mia.auc(*(drawn[name][:, 0] for name in MEMBERS))
            found["MIA score"] = metrics.mia_score(auc)
        return found

    return look.intervals({**tables, **losses}, scores)
