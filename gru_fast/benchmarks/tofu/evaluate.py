"""Evaluation on TOFU: four sets of questions scored by a model, then Model Utility and Forget Quality of the records.

The original code (T) is followed, as the paper does, except where noted:

- the first 300 rows of each set (``max_rows``);
- losses: question and answer cut at ``max_length`` 200 tokens, mean over the answer's label tokens with its end token;
- generation: greedy, until prompt and answer are ``max_length`` tokens. T counts the padded prompt, so that the room
  of a row depends on the longest question of its batch; here each row's own prompt counts, and results do not depend
  on the batch size. A prompt of ``max_length`` tokens and more leaves no room: an empty answer, ROUGE 0 (T cuts the
  prompt). With ``max_new_tokens`` the answer alone counts, as in the unified framework (there 200);
- ROUGE against the whole answer of the data set; T's is cut at ``max_length``, which cuts none of the published rows;
- the model is run in the dtype it was loaded in (T: bfloat16).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from gru_fast.benchmarks.tofu import extra as tofu_extra
from gru_fast.benchmarks.tofu.records import check, content, deviation, encode, score
from gru_fast.benchmarks.tofu.rows import HUB, MAX_ROWS, SPLITS, load_eval_sets, split_problem
from gru_fast.benchmarks.tofu.summary import LOG_FORMATS, finish, resummarize, says_deviation, summarize, write_log_as
from gru_fast.data.templates import Template, resolve_template
from gru_fast.evaluation import extra
from gru_fast.evaluation.asking import Scorer, score_rows
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.record_folder import RowSet, check_settings
from gru_fast.evaluation.subject import Subject, check_whole
from gru_fast.metrics import aggregate
from gru_fast.metrics import quick as look
from gru_fast.metrics import tofu as metrics
from gru_fast.metrics.logs import read_log
from gru_fast.metrics.records import Record, Records
from gru_fast.metrics.rouge import warn_of_dropped
from gru_fast.models.forward import Autocast
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.processes import on_first

HELP = "Model Utility and Forget Quality of a model on TOFU, or of published logs"
MAX_LENGTH = 200
_COMPARED = 8  # rows to forget, whose losses are taken in float32 too where all are in bfloat16


@dataclass
class TofuEvalOptions(extra.ExtraOptions):
    """What `gru-fast eval tofu` can be asked."""

    aggregates: ClassVar[tuple[str, ...]] = tuple(aggregate.HELP)
    split: str | None = field(
        default=None,
        metadata={"help": f"what was to be forgotten: {', '.join(SPLITS)}; by default as in the run of --model"},
    )
    data: str | None = field(
        default=None,
        metadata={"help": f"TOFU on the hub ({HUB}), or a folder in its original layout; by default as in the run"},
    )
    retain_logs: str | None = field(
        default=None,
        metadata={"help": "evaluation of the retrained model, for Forget Quality: its run folder, or a log"},
    )
    from_logs: str | None = field(
        default=None, metadata={"help": "a log or evaluated run to print the numbers of, instead of running --model"}
    )
    write_log: str | None = field(
        default=None,
        metadata={
            "help": "write a log for other programs, of --from-logs too: original (always there beside a summary) or "
            "open-unlearning, whose evaluator goes on from it",
            "choices": LOG_FORMATS,
        },
    )
    matching_rows: bool = field(
        default=False,
        metadata={"help": "compare the forget rows that both logs hold, if they hold different ones"},
    )
    truth_ratio: str = field(
        default=metrics.TRUTH_RATIOS[0],
        metadata={
            "help": "mean of the wrong answers in it: geometric as in the published tables, or arithmetic",
            "choices": metrics.TRUTH_RATIOS,
        },
    )
    max_rows: int = field(default=MAX_ROWS, metadata={"help": "the first rows of each set; 0 for all"})
    quick: bool = look.option()
    bf16: bool = field(
        default=False,
        metadata={
            "help": "compute in bfloat16, with weights as they are loaded, and say how far losses then are from float32"
        },
    )
    max_length: int = field(
        default=MAX_LENGTH, metadata={"help": "tokens of question and answer, also when the model writes the answer"}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "tokens of a written answer; by default what max_length leaves"}
    )

    def __post_init__(self) -> None:
        least = {"max_rows": 0, "max_length": 2, "max_new_tokens": 1}
        problems = [
            f"{name}: expected at least {low}, got {value}"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and value < low
        ]
        if self.split is not None and (problem := split_problem(self.split)):
            problems.append(problem)
        if self.matching_rows and self.retain_logs is None:
            problems.append("matching_rows: expected retain_logs as well; there is nothing to match")
        if self.write_log is not None and self.write_log not in LOG_FORMATS:
            problems.append(f'write_log: expected one of {", ".join(LOG_FORMATS)}, got "{self.write_log}"')
        if self.metrics and self.from_logs is not None:
            problems.append("metrics: a log does not hold what they need; give --model instead of from_logs")
        if self.quick and self.from_logs is not None:
            problems.append("quick: a log has been scored already; leave it out, or give --model instead of from_logs")
        if self.quick and self.metrics:
            problems.append("quick: expected no metrics beside it, which read all rows; leave one of them out")
        if self.bf16 and self.from_logs is not None:
            problems.append("bf16: a log has been scored already; leave it out, or give --model instead of from_logs")
        if self.bf16 and self.metrics:
            problems.append("bf16: expected no metrics beside it, which are taken in the model's dtype; leave one out")
        problems += self.problems_of_metrics()
        if problems:
            raise ValueError("; ".join(problems))


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = TofuEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says of the options; of a retrained model, the split that it never saw."""
    if config.get("benchmark", "tofu") != "tofu":
        return {}
    found = {name: config[name] for name in ("split", "data") if config.get(name)}
    retain = re.fullmatch(r"retain(\d\d)", str(config.get("subset", "")))
    if retain and "split" not in found:
        found["split"] = f"forget{100 - int(retain[1]):02d}"
    return found


def needs_model(options: TofuEvalOptions) -> bool:
    """Whether a model is to be scored, and not a log to be read."""
    return options.from_logs is None


def writes(options: TofuEvalOptions) -> bool:
    """Whether an output folder is needed where no model is."""
    return options.write_log is not None


def title(options: TofuEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    if options.split is None:
        raise ValueError(f"split: the model's folder does not say what was to be forgotten; give {', '.join(SPLITS)}")
    return f"tofu-{options.split}{look.SUFFIX if options.quick else ''}"


def run(options: TofuEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a log, of a finished evaluation, or of one that is done now."""
    if options.from_logs is not None:
        records = read_log(options.from_logs, options.split)
        summary = _summary_of_log(options, records)
    else:
        records = None
        summary = _with_metrics(options, subject)
    if options.write_log is not None:
        on_first(partial(write_log_as, options.write_log, records, summary, subject.output_dir))
    return summary


def _with_metrics(options: TofuEvalOptions, subject: Subject) -> dict[str, Any]:
    if not options.metrics:
        return _run(options, subject)
    rows = tofu_extra.load_rows(options.metrics, str(options.split), options.data or HUB, options.max_rows or None)
    return extra.evaluated_with(
        subject,
        partial(_run, options),
        lambda subject, summary: tofu_extra.measure(options, subject, rows, summary, options.retain_logs),
    )


def _run(options: TofuEvalOptions, subject: Subject) -> dict[str, Any]:
    limits = _limits(options)
    how = (options.retain_logs, options.truth_ratio, options.matching_rows)

    def check() -> None:
        if options.retain_logs is not None:
            read_log(options.retain_logs, options.split)
        if not subject.overwrite:
            check_settings(subject.output_dir / "records", {"split": options.split, **limits})

    done = partial(
        evaluate,
        split=str(options.split),
        data=options.data or HUB,
        output_dir=subject.output_dir,
        retain_logs=options.retain_logs,
        truth_ratio=options.truth_ratio,
        matching_rows=options.matching_rows,
        **limits,
    )
    again = partial(resummarize, subject.output_dir, *how)
    return subject.evaluated(wanted(options, subject.asked), again, done, check)


def wanted(options: TofuEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    limits = {"quick": None, "bf16": None, **_limits(options)}  # else a third of the rows would answer for all
    return {"split": options.split, "data": options.data or HUB, "model_options": asked, **limits}


def _limits(options: TofuEvalOptions) -> dict[str, Any]:
    return {
        "max_length": options.max_length,
        "max_new_tokens": options.max_new_tokens,
        "max_rows": options.max_rows or None,
        **look.setting(options.quick),
        **_if_so(bf16=options.bf16),
    }


def _if_so(**chosen: bool) -> dict[str, bool]:
    """Of the settings; nothing of what was not chosen, as in evaluations from before there was a choice."""
    return {name: True for name, is_so in chosen.items() if is_so}


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    rows = summary["num_rows"]
    of = f" {summary['split']}" if summary["split"] else ""
    lines = [f"TOFU{of}: {', '.join(f'{count} {name}' for name, count in rows.items())} rows"]
    utility, quality = summary["model_utility"], summary["forget_quality"]
    said = "" if utility is not None else "  (sets are missing)"
    lines.append(f"Model Utility   {_number(utility)}{said}")
    if quality is None:
        lines.append(f"Forget Quality  {_number(None)}  (give --retain-logs: the retrained model's run or log)")
    else:
        lines.append(
            f"Forget Quality  {_number(quality['log_p'])}  ln p of the KS test (p {quality['p']:.6e}, statistic "
            f"{quality['statistic']:.6f}, {quality['n']} rows each)"
        )
    lines.append(f"\n{'':<14}{'Probability':>12}{'ROUGE-L':>12}{'Truth Ratio':>12}")
    components, forget = summary["components"], summary["forget"]
    if components is not None:
        for prefix, name in (("retain", "retain"), ("ra", "real authors"), ("wf", "world facts")):
            values = [components[f"{prefix}_{part}"] for part in ("prob", "rougeL_recall", "truth_ratio")]
            lines.append(f"{name:<14}" + "".join(map(_number, values)))
    if forget is not None:
        values = [forget[part] for part in ("prob", "rougeL_recall", "truth_ratio_min")]
        lines.append(f"{'forget':<14}" + "".join(map(_number, values)) + "  mean min(R, 1/R)")
        if "truth_ratio_prob_mean" in forget:  # not in summaries of earlier versions
            lines.append(f"{'':<38}{_number(forget['truth_ratio_prob_mean'])}  mean 1 / (1 + R)")
    if summary.get("bf16"):
        of = "bfloat16: {count} losses of {rows} rows are {mean:.2g} from float32 on average, {max:.2g} at most"
        lines.append("\n" + of.format(**summary["bf16"]))
    if summary.get("extra"):
        lines.append("\n" + extra.report(summary["extra"]))
    if summary.get("intervals"):
        lines += ["", *look.report(summary), "  (the p of so few rows is larger than that of all)"]
    return "\n".join(lines)


# A plot of removal against retention: the columns of both, and which way is better.
PLANE = {"MU": "what is kept, higher is better", "FQ (ln p)": "how well it is removed, higher is better"}

KNOWLEDGE = ("forget ROUGE-L", "forget prob")


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    quality, components, forget = (summary.get(key) or {} for key in ("forget_quality", "components", "forget"))
    return {
        "FQ (ln p)": quality.get("log_p"),
        "p": quality.get("p"),
        "MU": summary.get("model_utility"),
        "forget ROUGE-L": forget.get("rougeL_recall"),
        "retain ROUGE-L": components.get("retain_rougeL_recall"),
        "forget prob": forget.get("prob"),
        "retain prob": components.get("retain_prob"),
    }


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.6f'):>12}"


def _summary_of_log(options: TofuEvalOptions, records: Records) -> dict[str, Any]:
    retained = None if options.retain_logs is None else read_log(options.retain_logs, options.split)
    settings = {name: getattr(options, name) for name in ("from_logs", "retain_logs", "truth_ratio", "matching_rows")}
    return {
        "benchmark": "tofu",
        "split": options.split,
        **summarize(records, retained, options.truth_ratio, matching_rows=options.matching_rows),
        "seconds": None,
        "settings": settings,
    }


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    template: Template | str | None,
    split: str,
    data: str | Path,
    output_dir: str | Path,
    *,
    retain_logs: str | Path | Records | None = None,
    batch_size: int = 16,
    max_length: int = MAX_LENGTH,
    max_new_tokens: int | None = None,
    max_rows: int | None = MAX_ROWS,
    quick: bool = False,
    bf16: bool = False,
    truth_ratio: str = "geometric",
    matching_rows: bool = False,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores ``model`` on the four sets of ``split``; writes and returns the summary.

    ``output_dir`` then holds ``records/SET.jsonl`` (one line a row, see :class:`gru_fast.metrics.records.Record`),
    ``summary.json`` and ``eval_log_aggregated.json`` (the original layout). Finished rows are kept as they come: called
    again, it goes on where it was stopped, and scores nothing when all rows are there.

    Where ``torch.distributed`` is initialised, the processes share the rows: all must call it, each with the same
    arguments and the whole model, and all get the summary.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        template: of the prompts; None: by the tokenizer, see :func:`~gru_fast.data.templates.resolve_template`.
        split: what was to be forgotten, e.g. "forget05".
        data: hub name or folder, see :func:`gru_fast.benchmarks.tofu.load`.
        retain_logs: the retrained model's log, run or records (:func:`~gru_fast.metrics.logs.read_log`), for Forget
            Quality; None: it is null in the summary.
        batch_size: rows at a time; each has up to 7 sequences, of which as many are run together.
        max_length, max_new_tokens, max_rows: see above.
        quick: every third of those rows, so that all authors are asked about; Forget Quality compares them with the
            same rows of ``retain_logs``. The summary then has ``intervals``, see
            :mod:`gru_fast.metrics.quick`.
        bf16: compute in bfloat16 (autocast) with a float32 model; the summary then has ``bf16``, the deviations of
            losses from float32 on some rows, see :func:`~gru_fast.benchmarks.tofu.records.deviation`. In place of
            ``autocast``.
        truth_ratio, matching_rows: see :mod:`gru_fast.metrics.tofu`.
        backend: writes texts in place of the model, see :mod:`gru_fast.evaluation.backends`.
        overwrite: score anew even if there are records, of these or of other settings.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        ValueError: records of another model or other settings in ``output_dir``; an answer cut off before it begins; a
            row that the model cannot read; a retained model's log of other questions; a model that is sharded over the
            processes. RuntimeError: NaN or Inf from the model.
    """
    check_whole(model)
    output_dir = Path(output_dir)
    if not overwrite:  # said of its own, before rows that differ
        check_settings(output_dir / "records", {"quick": quick or None, "bf16": bf16 or None})
    if bf16:
        autocast = _bfloat16(model)
    if template is None or isinstance(template, str):
        template = resolve_template(template, tokenizer)
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size, autocast, backend)
    step = look.step(quick)
    sets = {
        name: encode(tokenizer, template, rows[::step], max_length, max_new_tokens, name)
        for name, rows in load_eval_sets(split, data, max_rows).items()
    }
    for name, examples in sets.items():
        check(limits_of(model), examples, name, max_new_tokens)
        warn_of_dropped([example.answer for example in examples], name)
    # What Forget Quality would refuse after the work is refused before it.
    retained = read_log(retain_logs, split) if isinstance(retain_logs, (str, Path)) else retain_logs
    if retained is not None and retained.get("forget"):
        questions = [Record(index * step, example.question) for index, example in enumerate(sets["forget"])]
        metrics.match_rows(questions, retained["forget"], matching_rows or quick)
    settings = {
        "split": split,
        "template": template.name,
        "template_options": dict(template.options) or None,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "max_rows": max_rows,
        **look.setting(quick),
        **_if_so(bf16=bf16),
        "rows": {name: content(examples) for name, examples in sets.items()},
    }
    asked = [
        RowSet(
            name,
            examples,
            partial(score, scorer),
            [one.length for one in examples],
            every=step,
        )
        for name, examples in sets.items()
    ]
    how: dict[str, Any] = {"progress": progress, "overwrite": overwrite, "model_options": model_options}
    seconds, settings = score_rows(scorer, asked, output_dir, settings, data=data, **how)
    of_retained = (retain_logs, truth_ratio, matching_rows)
    apart = None
    if bf16 and (seconds is not None or not on_first(partial(says_deviation, output_dir))):
        apart = deviation(scorer, sets["forget"][:_COMPARED])
    return on_first(lambda: finish(output_dir, *of_retained, seconds=seconds, settings=settings, bf16=apart))


def _bfloat16(model: Any) -> Autocast:
    """The context to compute in bfloat16."""
    if model.dtype != torch.float32:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(
            f"bf16: expected a model in float32, got one in {dtype}; leave it out, or give --dtype float32"
        )
    return partial(torch.autocast, model.device.type, dtype=torch.bfloat16)
