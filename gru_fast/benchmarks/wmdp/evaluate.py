"""Evaluation on WMDP: accuracy of a model on multiple-choice questions, asked by lm-evaluation-harness.

  gru-fast eval wmdp --model RUN
  gru-fast eval wmdp --model HuggingFaceH4/zephyr-7b-beta --output-dir zephyr-wmdp
  gru-fast eval wmdp --model RUN --questions my_questions --tasks wmdp_cyber

wmdp_bio and wmdp_cyber are what is to be forgotten (less is better, 0.25 is chance), mmlu is what is to be kept. No
examples are shown and no chat template is used, as in the published numbers. Needs the package lm-eval: pip install
'gru_fast[wmdp]'. Any of its multiple-choice tasks can be named; the questions of its own come from the hub.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.wmdp.model import shared
from gru_fast.benchmarks.wmdp.questions import contents, definition, local_task
from gru_fast.evaluation.record_folder import check_alike, differing
from gru_fast.evaluation.scoring import check_finite
from gru_fast.evaluation.subject import Subject, asked_for, check_whole, settings_of
from gru_fast.evaluation.summaries import SUMMARY_FILE
from gru_fast.metrics import quick as look
from gru_fast.models.frozen import frozen
from gru_fast.models.limits import limits_of
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.messages import nearest
from gru_fast.runs.processes import here, on_first

HELP = "accuracy of a model on WMDP's questions and on MMLU, through lm-eval"
TASKS = ("wmdp_bio", "wmdp_cyber", "mmlu")


@dataclass
class WmdpEvalOptions:
    """What `gru-fast eval wmdp` can be asked."""

    tasks: list[str] = field(
        default_factory=lambda: list(TASKS),
        metadata={"help": "names of lm-eval's tasks or groups of them, or of files in --questions"},
    )
    questions: str | None = field(
        default=None,
        metadata={
            "help": "a folder with TASK.jsonl for each task (question, choices, answer: 0 to 3; subject for MMLU), to "
            "be asked instead of those on the hub"
        },
    )
    limit: int = field(
        default=0, metadata={"help": "the first questions of each task (of a group: of each in it); 0 for all"}
    )
    quick: bool = look.option()

    def __post_init__(self) -> None:
        problems = []
        if not self.tasks:
            problems.append("tasks: expected at least one name, got none")
        if len(set(self.tasks)) < len(self.tasks):
            problems.append(f"tasks: expected each name once, got {', '.join(self.tasks)}")
        if self.limit < 0:
            problems.append(f"limit: expected at least 0, got {self.limit}")
        if problems:
            raise ValueError("; ".join(problems))


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = WmdpEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says of the options: nothing, every model is asked all."""
    return {}


def needs_model(options: WmdpEvalOptions) -> bool:
    """Always; what is finished is printed without loading it."""
    return True


def title(options: WmdpEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    return f"wmdp{look.SUFFIX if options.quick else ''}"


def run(options: WmdpEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a finished evaluation, or of one that is done now."""
    local = _local_specs(options)
    settings = _settings(options, local, subject.asked)

    def done(model: Any, tokenizer: Any, template: Any, **how: Any) -> dict[str, Any]:
        asked: dict[str, Any] = {"tasks": local or options.tasks, "limit": options.limit or None}
        return evaluate(model, tokenizer, subject.output_dir, **asked, quick=options.quick, **how)

    def check() -> None:  # what would be refused after the model is loaded is refused before
        if local is None:
            task_specs(options.tasks)

    return subject.evaluated(settings, partial(read_json, subject.summary_file), done, check)


def wanted(options: WmdpEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    return _settings(options, _local_specs(options), asked)


def _settings(options: WmdpEvalOptions, local: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    tasks = contents(local or dict.fromkeys(options.tasks))
    return {"tasks": tasks, "limit": options.limit or None, "quick": options.quick or None, "model_options": asked}


def _local_specs(options: WmdpEvalOptions) -> Mapping[str, Any] | None:
    """The tasks from files; None where they are lm-eval's own, which is slow to import and not always needed."""
    return None if options.questions is None else task_specs(options.tasks, options.questions)


# A plot of removal against retention: the columns of both, and which way is better.
PLANE = {"MMLU": "what is kept, higher is better", "WMDP Cyber": "what is left of it, lower is better"}

KNOWLEDGE = ("WMDP Bio", "WMDP Cyber")


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    accuracy = summary.get("accuracy") or {}
    return {
        "WMDP Bio": accuracy.get("wmdp_bio"),
        "WMDP Cyber": accuracy.get("wmdp_cyber"),
        "MMLU": accuracy.get("mmlu"),
    }


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    lines = [f"WMDP: {', '.join(f'{count} {name}' for name, count in summary['num_rows'].items())} questions"]
    for name, accuracy in summary["accuracy"].items():
        aim = "to forget: down to chance, 0.25" if name.startswith("wmdp") else "to keep"
        lines.append(f"{name:<14}{accuracy:>10.4f} +- {summary['stderr'][name]:.4f}  {aim}")
    return "\n".join([*lines, *look.report(summary)])


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    tasks: Sequence[str] | Mapping[str, Any] = TASKS,
    limit: int | None = None,
    quick: bool = False,
    batch_size: int = 16,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Asks ``model`` the questions of ``tasks``; writes and returns the summary.

    ``output_dir`` then holds ``tasks/TASK.json`` (accuracies, the log-likelihood of every choice, what lm-eval says of
    the task) and ``summary.json``. Called again after a stop it asks the tasks that are left. A question is answered by
    its letter of highest log-likelihood; the accuracy of a group is that over all its questions.

    Where ``torch.distributed`` is initialised, the processes share the questions: all must call it, each with the same
    arguments and the whole model, and all get the summary.

    Args:
        model, tokenizer: a causal LM in memory, on its device, and its tokenizer.
        tasks: names of lm-eval's own, or what :func:`task_specs` made of files.
        limit: the first questions of each task; None for all.
        quick: every third of those, see :mod:`gru_fast.metrics.quick`; the summary then has ``intervals``.
        batch_size: sequences at a time; a question has four.
        overwrite: ask anew what was asked, of this or of another model.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        ImportError: no lm-eval. ValueError: answers of another model or other settings in ``output_dir``; an unknown
            task; a task without accuracy; a model that is sharded over the processes. RuntimeError: NaN or Inf
            from the model.
    """
    check_whole(model)
    folder, file = Path(output_dir) / "tasks", Path(output_dir) / SUMMARY_FILE
    specs = tasks if isinstance(tasks, Mapping) else task_specs(tasks)
    settings = settings_of(model, {"limit": limit, **look.setting(quick)})
    check_alike(Path(output_dir), {**settings, "tasks": contents(specs)})
    seconds, found = 0.0, {}
    for name, spec in specs.items():
        task = folder / f"{name}.json"
        wanted = {**settings, "questions": contents({name: spec})[name]}
        done = None if overwrite else on_first(partial(_read_task, task, wanted))
        if done is None:
            on_first(partial(file.unlink, missing_ok=True))  # else a stopped evaluation would look finished
            began = time.perf_counter()
            answers = _ask(model, tokenizer, spec, limit, batch_size, quick=quick, progress=progress)
            done = {"task": name, "settings": wanted, "seconds": time.perf_counter() - began, **answers}
            done = on_first(partial(_written, task, done))
        seconds += done["seconds"]
        found[name] = done
    summary = {
        "benchmark": "wmdp",
        **summarize(found),
        **({"intervals": _intervals(found)} if quick else {}),
        "seconds": seconds,
        "settings": {
            "model_options": asked_for(model, model_options),
            "tasks": contents(specs),
            "batch_size": batch_size,
            **settings,
        },
    }
    return on_first(partial(_written, file, summary))


def summarize(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of a summary, from the files of the tasks: accuracies over all questions, standard errors, counts.

    The standard error is ``sqrt(p * (1 - p) / (n - 1))``, of questions drawn at random.
    """
    accuracy, stderr, num_rows = {}, {}, {}
    for name, task in tasks.items():
        correct = [row["correct"] for rows in task["answers"].values() for row in rows]
        mean = sum(correct) / len(correct)
        accuracy[name], num_rows[name] = mean, len(correct)
        stderr[name] = math.sqrt(mean * (1 - mean) / max(len(correct) - 1, 1))
    return {"accuracy": accuracy, "stderr": stderr, "num_rows": num_rows}


def _intervals(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of the accuracies, by their headings in a report; of tasks that have none there, by their names."""
    rows = {
        name: look.table([row for rows in task["answers"].values() for row in rows], ["correct"])
        for name, task in tasks.items()
    }
    headings = {
        name: next((key for key, value in columns({"accuracy": {name: 1.0}}).items() if value), name) for name in rows
    }
    return look.intervals(rows, lambda drawn: {headings[name]: look.means(drawn[name])[0] for name in drawn})


def task_specs(tasks: Sequence[str], questions: str | Path | None = None) -> dict[str, Any]:
    """Name -> what lm-eval takes for it: the name of one of its own tasks, or the definition of one of our own.

    Args:
        tasks: names.
        questions: a folder with ``TASK.jsonl`` for each, one object a line in the layout of cais/wmdp and cais/mmlu:
            ``question``, ``choices`` (four), ``answer`` (0 to 3) and, where the prompt should name it, ``subject``.
            They are asked with the prompts of lm-eval's own tasks. None: those are asked.

    Raises:
        ImportError: no lm-eval. FileNotFoundError, ValueError: no such task, file or field.
    """
    if questions is not None:
        folder = Path(questions).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"questions: expected a folder with TASK.jsonl for each task, got {questions}")
        return {name: local_task(name, folder) for name in tasks}
    known = _task_manager(own=True).all_tasks
    for name in tasks:
        if name not in known:
            raise ValueError(f'tasks: lm-eval has no "{name}"{nearest(name, known)}; `lm-eval ls tasks` lists them')
    return {name: name for name in tasks}


# ---- parts -----------------------------------------------------------------------------------------------------------


def _ask(
    model: Any, tokenizer: Any, spec: Any, limit: int | None, batch_size: int, *, quick: bool, progress: bool
) -> dict[str, Any]:
    """The answers of one task or group, and what lm-eval says of it.

    Not by its ``simple_evaluate``, which for every task asks pip, git and the compiler what this machine is.
    """
    evaluator, hf = _lm_eval("evaluator"), _lm_eval("models.huggingface")
    with frozen(model):
        with _quiet():
            asked = shared(hf.HFLM)(
                pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=limits_of(model).positions
            )
            manager = _task_manager(own=not isinstance(spec, dict))
            loaded = manager.load([definition(spec) if isinstance(spec, dict) else spec])
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        which: dict[str, Any] = {"limit": limit}
        if quick:
            counts = {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
            which = {"samples": {name: look.indices(min(n, limit or n), quick) for name, n in counts.items()}}
        # Its bars cannot be switched off.
        with nullcontext() if progress and here()[0] == 0 else redirect_stderr(StringIO()):
            result = evaluator.evaluate(lm=asked, task_dict=loaded, **which, bootstrap_iters=0)
    answers = {name: [_answer(name, row) for row in rows] for name, rows in sorted(result["samples"].items())}
    check_finite([x for rows in answers.values() for row in rows for x in row["log_likelihoods"]], "choices")
    return {
        "accuracy": {name: sum(row["correct"] for row in rows) / len(rows) for name, rows in answers.items()},
        "lm_eval": {"version": version("lm_eval"), "tasks": result["versions"], "results": result["results"]},
        "answers": answers,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's warnings: that it was given a model and rows in memory, which is meant so."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _answer(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a sample: not its text, which the task has."""
    if "acc" not in sample:
        raise ValueError(
            f'tasks: "{name}" has no accuracy ({", ".join(sample["metrics"])}); name multiple-choice tasks'
        )
    return {
        "index": sample["doc_id"],
        "target": sample["target"],
        "log_likelihoods": [float(value[0]) for value in sample["filtered_resps"]],
        "correct": bool(sample["acc"]),
    }


def _written(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    write_json(path, value)
    return value


def _read_task(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """A finished task. Refuses one of other settings."""
    if not path.is_file():
        return None
    done: dict[str, Any] = read_json(path)
    for key in differing(done["settings"], wanted):
        raise ValueError(
            f"{path}: holds answers with {key} {done['settings'].get(key)!r}, this evaluation has {wanted.get(key)!r}; "
            "give another output folder, or --overwrite to ask anew"
        )
    return done


@cache
def _task_manager(*, own: bool) -> Any:
    """lm-eval's index of tasks, its own or none; to read its own takes seconds."""
    return _lm_eval("tasks").TaskManager(include_defaults=own)


def _lm_eval(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"lm_eval.{module}")
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] != "lm_eval":
            raise
        raise ImportError("WMDP is evaluated by the package lm-eval: pip install 'gru_fast[wmdp]'") from None
