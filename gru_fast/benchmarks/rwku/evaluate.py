"""Evaluation on RWKU: what a model still knows of a famous person, of their neighbours, and of everything else.

  gru-fast eval rwku --model RUN --target "Stephen King"
  gru-fast eval rwku --model RUN --target "Stephen King" --sets forget neighbor

Of the person: ROUGE-L recall where a blank is to be filled in (FB), a question answered (QA), and under nine kinds of
attack (AA). Of neighbours, people whom the person has to do with: FB and QA. Membership: the loss on texts on the
person (FM) and on others (RM). Utility: MMLU (GA), BBH (RA), TruthfulQA (Tru), TriviaQA (Fac), fluency (Flu). Without
--target all people's probes are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.rwku.data import GROUPS, HUB, load, sets_of
from gru_fast.benchmarks.rwku.records import (
    ANSWER_TOKENS,
    LONG_TOKENS,
    PRIMERS,
    check,
    content,
    encode,
    read_primers,
    score,
)
from gru_fast.data.rows import read_json_rows
from gru_fast.data.templates import Template, resolve_template
from gru_fast.evaluation.asking import Scorer, score_rows
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.record_folder import RowSet
from gru_fast.evaluation.subject import Subject, check_whole
from gru_fast.evaluation.summaries import SUMMARY_FILE, settings_before
from gru_fast.metrics import quick as look
from gru_fast.metrics import rwku as metrics
from gru_fast.models.forward import Autocast
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "knowledge of a famous person, their neighbours, membership and utility, on RWKU"


@dataclass
class RwkuEvalOptions:
    """What `gru-fast eval rwku` can be asked."""

    target: str | None = field(
        default=None, metadata={"help": 'the person, as "Stephen King"; by default all people of the data'}
    )
    data: str | None = field(
        default=None, metadata={"help": f"RWKU on the hub ({HUB}), or a folder in its original layout"}
    )
    sets: list[str] | None = field(
        default=None, metadata={"help": f"what to ask: {', '.join(GROUPS)}; by default all of them"}
    )
    max_rows: int = field(default=0, metadata={"help": "the first rows of each set; 0 for all"})
    quick: bool = look.option()
    answer_tokens: int = field(default=ANSWER_TOKENS, metadata={"help": "most tokens of an answer"})
    long_tokens: int = field(
        default=LONG_TOKENS, metadata={"help": "most tokens of a chain of thought (BBH), and of a text (fluency)"}
    )
    primers: str | None = field(
        default=None,
        metadata={
            "help": f"a JSON file with what stands before the questions of {' and '.join(PRIMERS)}: the examples of "
            "RWKU's code, say"
        },
    )

    def __post_init__(self) -> None:
        problems = []
        for name, least in (("max_rows", 0), ("answer_tokens", 1), ("long_tokens", 1)):
            if getattr(self, name) < least:
                problems.append(f"{name}: expected at least {least}, got {getattr(self, name)}")
        problems += [
            f'sets: expected some of {", ".join(GROUPS)}, got "{name}"'
            for name in self.sets or ()
            if name not in GROUPS
        ]
        if problems:
            raise ValueError("; ".join(problems))


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = RwkuEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing: RWKU gives no data to forget, so that no run is of it."""
    return {}


def needs_model(options: RwkuEvalOptions) -> bool:
    """Always; what is finished is printed without loading it."""
    return True


def title(options: RwkuEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    of = re.sub(r"\W+", "-", options.target).strip("-").lower() if options.target else "all"
    return f"rwku-{of}{look.SUFFIX if options.quick else ''}"


def run(options: RwkuEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a finished evaluation, or of one that is done now."""
    done = partial(evaluate, output_dir=subject.output_dir, **_how(options))
    return subject.evaluated(wanted(options, subject.asked), partial(_known, subject.output_dir), done)


def wanted(options: RwkuEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    return {**_how(options), "quick": options.quick or None, "model_options": asked}


def _how(options: RwkuEvalOptions) -> dict[str, Any]:
    return {
        "target": options.target,
        "data": options.data or HUB,
        "sets": sets_of(options.sets or [*GROUPS]),
        "max_rows": options.max_rows or None,
        "answer_tokens": options.answer_tokens,
        "long_tokens": options.long_tokens,
        "primers": None if options.primers is None else read_primers(options.primers),
        "quick": options.quick,
    }


def _known(output_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(output_dir / SUMMARY_FILE)
    return found


# The columns: heading -> set, metric.
_COLUMNS = {
    "forget FB": ("forget_level1", "rougeL_recall"),
    "forget QA": ("forget_level2", "rougeL_recall"),
    "forget AA": ("forget_level3", "rougeL_recall"),
    "neighbor FB": ("neighbor_level1", "rougeL_recall"),
    "neighbor QA": ("neighbor_level2", "rougeL_recall"),
    "FM": ("mia_forget", "loss"),
    "RM": ("mia_retain", "loss"),
    "GA": ("utility_general", "accuracy"),
    "RA": ("utility_reason", "exact_match"),
    "Tru": ("utility_truthfulness", "mc1"),
    "Fac": ("utility_factuality", "f1"),
    "Flu": ("utility_fluency", "entropy"),
}
PLANE = {
    "neighbor QA": "what is kept, higher is better",
    "forget QA": "what is left of it, lower is better",
}
KNOWLEDGE = ("forget FB", "forget QA", "forget AA")


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    numbers = summary.get("numbers") or {}
    return {heading: numbers.get(name, {}).get(metric) for heading, (name, metric) in _COLUMNS.items()}


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    lines = [f"RWKU, {summary['target'] or 'all people'}"]
    for name, numbers in summary["numbers"].items():
        values = "  ".join(f"{metric} {value:.4f}" for metric, value in numbers.items())
        lines.append(f"{name:<22}{summary['num_rows'][name]:>6} rows  {values}")
    for kind, value in (summary["attacks"] or {}).items():
        lines.append(f"  {kind:<26}rougeL_recall {value:.4f}")
    return "\n".join([*lines, *look.report(summary)])


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    template: Template | str | None,
    output_dir: str | Path,
    *,
    target: str | None = None,
    data: str | Path = HUB,
    sets: list[str] | None = None,
    max_rows: int | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    long_tokens: int = LONG_TOKENS,
    primers: Mapping[str, str] | None = None,
    quick: bool = False,
    batch_size: int = 16,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores ``model`` on probes about a person; writes and returns the summary, also of sets that were scored before.

    ``output_dir`` then holds ``records/SET.jsonl``, one line a probe, and ``summary.json``: ``numbers`` by set and
    metric (:mod:`gru_fast.metrics.rwku`), ``attacks`` by kind. Finished probes are kept as they come: called
    again, it goes on where it was stopped. Where ``torch.distributed`` is initialised, the processes share the probes.

    Args:
        model, tokenizer, template: a causal LM, its tokenizer, and the words around a question; see
            :mod:`gru_fast.benchmarks.rwku.records` for what is asked.
        target, data, max_rows: see :func:`gru_fast.benchmarks.rwku.data.load`.
        sets: of its names; None: all.
        answer_tokens, long_tokens: that the model writes at most: an answer; a chain of thought, or a text.
        primers: what stands before some questions, see :func:`gru_fast.benchmarks.rwku.records.encode`.
        quick: every third of those rows, see :mod:`gru_fast.metrics.quick`; the summary then has ``intervals``.
        backend: writes texts in place of the model, see :mod:`gru_fast.evaluation.backends`.
        overwrite: score anew even if there are records, of these or of other settings.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        FileNotFoundError, ValueError: no such data; records of another model or other settings in ``output_dir``; a
            probe that the model cannot read. RuntimeError: NaN or Inf from the model.
    """
    check_whole(model)
    output_dir = Path(output_dir)
    names = sets_of([*GROUPS]) if sets is None else sets
    before: dict[str, Any] = {} if overwrite else on_first(partial(settings_before, output_dir))
    every = look.step(quick)
    if template is None or isinstance(template, str):
        template = resolve_template(template, tokenizer)
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size, autocast, backend)
    written: dict[str, Any] = {"answer_tokens": answer_tokens, "long_tokens": long_tokens, "primers": primers}
    probes = {
        name: encode(name, tokenizer, template, load(name, data, target, max_rows)[::every], **written)
        for name in names
    }
    for name, found in probes.items():
        check(limits_of(model), name, found)
    settings = {
        "target": target,
        "max_rows": max_rows,
        **look.setting(quick),
        **written,
        "template": template.name,
        "template_options": dict(template.options) or None,
        "rows": {name: content(found) for name, found in probes.items()},
    }
    asked = [
        RowSet(
            name,
            found,
            partial(score, name, scorer),
            [probe.length for probe in found],
            every=every,
        )
        for name, found in probes.items()
    ]
    how: dict[str, Any] = {"progress": progress, "overwrite": overwrite, "model_options": model_options}
    seconds, settings = score_rows(scorer, asked, output_dir, settings, data=data, **how)
    settings["rows"] = {**before.get("rows", {}), **settings["rows"]}
    settings["sets"] = [name for name in sets_of([*GROUPS]) if name in settings["rows"]]
    return on_first(lambda: _finish(output_dir, seconds, settings))


def _finish(output_dir: Path, seconds: float | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the summary. Numbers come from the records on disk: gone on with or unbroken, they are the same."""
    records = {name: read_json_rows(output_dir / "records" / f"{name}.jsonl") for name in settings["sets"]}
    attacks = records.get("forget_level3")
    summary = {
        "benchmark": "rwku",
        "target": settings["target"],
        "numbers": metrics.summarize(records),
        "attacks": metrics.by_type(attacks) if attacks else None,
        **({"intervals": _intervals(records)} if settings.get("quick") else {}),
        "num_rows": {name: len(rows) for name, rows in records.items()},
        "seconds": seconds,
        "settings": dict(settings),
    }
    write_json(output_dir / SUMMARY_FILE, summary)
    return summary


def _intervals(records: Mapping[str, Sequence[metrics.Record]]) -> dict[str, list[float]]:
    """Of the columns of a report."""
    shown = {heading: found for heading, found in _COLUMNS.items() if found[0] in records}
    scores = {name: metrics.scores(name, records[name]) for name, _ in shown.values()}
    tables = {heading: look.table(scores[name], [metric]) for heading, (name, metric) in shown.items()}
    return look.intervals(tables, lambda drawn: {heading: look.means(rows)[0] for heading, rows in drawn.items()})
